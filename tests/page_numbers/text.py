"""What research/text.md says by the logs."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import mean

from benchmarks.board.measure import ALL
from benchmarks.board.variants import REFERENCE
from benchmarks.vqa import report as vqa
from page_numbers.logs import (
    MOSAICS,
    TAUGHT,
    answers_to_questions,
    bare,
    cost,
    emojis,
    lift,
    over,
    plans_score,
    right,
    said,
    span,
)


def sentences() -> Iterator[str]:
    blends = [name for name, budget in answers_to_questions() if name.startswith("text ")]
    lifts = [plans_score(name, "lift") for name in blends]
    yield f"Its lift is {span(lifts, 2)} at every text weight"
    behind = [-100 * over(name, f"random {name.split()[-1]}").mean for name in blends]
    yield f"*worse* than from random patches, by {min(behind):.0f} to {max(behind):.0f} points"
    one, first, albef = "similarity 0.25", "first similarity 0.25", "albef_vqa"
    yield (
        f"lift {lift(one)}, {bare(over(one, 'random 0.25'))} points above random patches, "
        f"{said(over(one, REFERENCE))} from all tokens. A quarter from three quarters of the depth "
        f"on: {said(over(one + ' at 9', REFERENCE))}; half of the tokens: "
        f"{said(over('similarity 0.5', REFERENCE))}."
    )
    own, other = (vqa.right(answers_to_questions()[name, "none"]) for name in (one, first))
    ahead = [100 * (own[seed] - other[seed]) for seed in own]
    yield f"(lift {lift(first)}) in each of the five seeds, by {span(ahead)} points."
    yield (
        f"{bare(over(one, 'random 0.25', 'steps'))} points above random; **with the loss on the "
        f"choice** {bare(over(TAUGHT, 'random 0.25', 'steps'))} above random, "
        f"{bare(over(TAUGHT, 'image 0.25', 'steps'))} above the image alone, lift "
        f"{lift(TAUGHT, 'steps')}. That loss gains {bare(over(TAUGHT, one, 'steps'))}."
    )
    yield (
        f"{said(over(TAUGHT, REFERENCE, 'steps'))} points at equal steps, "
        f"{said(over(TAUGHT, REFERENCE, 'operations', other_budget='steps'))} at equal operations "
        f"({cost(TAUGHT)} of a step"
    )
    behind_all = -100 * over(TAUGHT, REFERENCE, "steps", albef).mean
    yield (
        f"lift {lift(one, arch=albef)} and lose {bare(over(one, REFERENCE, arch=albef))} to all "
        f"tokens; after training they are {bare(over(TAUGHT, 'random 0.25', 'steps', albef))} "
        f"above random and {behind_all:.1f} below unpruned"
    )
    ours = "transformers_blip_vqa"
    yield (
        f"2 seeds: weights never pruned lift {lift(one, arch=ours)}, "
        f"{100 * over(one, REFERENCE, arch=ours).mean:+.1f} from all tokens; trained with "
        f"`similarity` {100 * over(one, 'random 0.25', 'steps', ours).mean:.1f} above random and "
        f"{-100 * over(one, REFERENCE, 'steps', ours).mean:.1f} below unpruned."
    )
    for where, at in (("block 3 of 12", ""), ("block 6", " at 6"), ("block 9", " at 9")):
        on_random, on_image, on_all = (
            over(one + at, other, arch=MOSAICS)
            for other in ("random 0.25" + at, "image 0.25" + at, REFERENCE)
        )
        yield (
            f"from {where} on {bare(on_random)} points above random patches, {bare(on_image)} "
            f"above the image alone, {said(on_all)} from all tokens, with a lift of "
            f"{lift(one + at, arch=MOSAICS)} on the photograph and "
            f"{plans_score(one + at, 'box lift', arch=MOSAICS):.2f} on the object's own box"
        )
    yield f"All tokens answer {right(REFERENCE, arch=MOSAICS)}% of the questions."
    yield (
        "Half of the tokens from block 3 on lose "
        f"{bare(over('similarity 0.5', REFERENCE, arch=MOSAICS))} to all tokens"
    )
    for text, name in (
        ("random", "random staged, end"),
        ("similarity to another picture's caption", "similarity shuffled"),
        ("similarity to its own caption", "similarity staged, end"),
    ):
        found = [row for seed, row in emojis()["scratch"][name, "steps"].items() if seed < 5]
        losses = (mean(row["curve"][part]["loss"] for row in found) for part in (4, 5))
        scores = [100 * row["scores"][ALL]["mrr"] for row in found]
        yield (
            f"| {text} | {' | '.join(f'{loss:.2f}' for loss in losses)} | {mean(scores):.1f} "
            f"({min(scores):.1f}-{max(scores):.1f}) |"
        )
    shuffled, random = (
        [
            row["scores"][ALL]["mrr"]
            for seed, row in emojis()["scratch"][name, "steps"].items()
            if seed < 5
        ]
        for name in ("similarity shuffled", "random staged, end")
    )
    yield f"close to chance ({100 * mean(shuffled):.1f} and {100 * mean(random):.1f})."
    turned = emojis()["scratch"]["similarity turned", "steps"]
    scores = " and ".join(f"{100 * turned[seed]['scores'][ALL]['mrr']:.1f}" for seed in (0, 1))
    yield f"it leaks as well ({scores}, seeds 0 and 1)."


NO_LOG = (
    "all tokens 83.3%,",
    "the loss on the choice 80.7%, random 48.7%",
    "it cost 0.07 of",
    "keep ratio 0.25",
    "1.015 (0.97-1.03), counted 1.019;",
    "1.044 (0.96-1.06), counted 1.037,",
    "above the 1.02",
    "without that loss: 1.005)",
    "0.999 (0.97-1.04), counted 1.000",
    "0.987 (0.97-1.05), 1.008)",
    "lift 1.0 in every block",
)
"""One run of a LAVIS config each, and times, which have no log."""
