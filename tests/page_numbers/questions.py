"""What docs/questions.md says by the logs."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.board.variants import REFERENCE
from page_numbers.logs import TAUGHT, cost, over, right, said, share


def sentences() -> Iterator[str]:
    both = [right(REFERENCE), right(REFERENCE, "steps")]
    yield f"| nothing: all tokens | | {both[0]}% | {both[1]}% |"
    one = "similarity 0.25"
    yield (
        f"| **`similarity`** | {share(one)} | **{right(one)}%** | {right(one, 'steps')}% | | "
        f"**`similarity`, `choice_loss: 1.0`** | {share(TAUGHT, 'steps')} | | "
        f"**{right(TAUGHT, 'steps')}%** ({said(over(TAUGHT, REFERENCE, 'steps'))}; "
        f"{said(over(TAUGHT, REFERENCE, 'operations', other_budget='steps'))} at equal "
        "operations) |"
    )
    for text, name in (("chance (`random`)", "random 0.25"), ("the image alone", "image 0.25")):
        yield f"| {text} | {share(name)} | {right(name)}% | {right(name, 'steps')}% |"
    blend = "text 0.2 0.25"
    yield f"| the paper's blend of text and class token | {share(blend)} | {right(blend)}% | |"
    yield f"The step takes {cost(one)} of the operations, {cost(TAUGHT)} with `choice_loss`."
    half = "similarity 0.5"
    yield f"before: {right(half)}% ({said(over(half, REFERENCE))})."
    lost = -100 * over("tome 0.5", REFERENCE).mean, -100 * over(half, REFERENCE).mean
    yield f"it lost {lost[0]:.0f} points, where `similarity` lost {lost[1]:.1f}."


NO_LOG = ("(chance 11%)",)
"""4 of 36 patches."""
