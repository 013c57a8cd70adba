"""What README.md says by the logs."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.photos.questions import TOP1
from page_numbers import pretrained
from page_numbers.logs import HALF, THIRD, bare, gap, photographs, said, step, time_of_step


def sentences() -> Iterator[str]:
    (half, half_photos), (third, third_photos) = (
        (gap(name), gap(name, found=photographs, measure=TOP1)) for name in (HALF, THIRD)
    )
    yield (
        f"After the same number of steps, `half` was at {said(half)} and {said(half_photos)} "
        f"({half.seeds} and {half_photos.seeds} seeds), at {step(HALF)} of the operations of a "
        f"training step. `third` was at {said(third)} and {said(third_photos)} ({third.seeds} and "
        f"{third_photos.seeds} seeds)"
    )
    more = [
        [gap(name, "operations"), gap(name, "operations", found=photographs, measure=TOP1)]
        for name in (THIRD, HALF)
    ]
    yield (
        f"`third` gained {bare(more[0][0])} and {bare(more[0][1])}, `half` {bare(more[1][0])} and "
        f"{bare(more[1][1])}. A step of `third` takes {step(THIRD, 'operations')} of the operations"
    )
    yield (
        f"a training step takes {time_of_step('half')} of the time with `half` and "
        f"{time_of_step('third')} with `third`"
    )
    short, long = (pretrained.tuned("ward 0.7", steps) for steps in (100, 300))
    yield (
        f"was at {short[0]} after as many steps, though {short[1]} after as many operations; in "
        f"trainings three times as long at {long[0]} and {long[1]}."
    )


NO_LOG = ("CC BY-SA 4.0", "a snapshot of 4.2", "| 4.57, 5.24 |", "torchvision 0.28")
"""Versions."""
