"""What README.md says by the logs."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.photos.questions import TOP1
from page_numbers.logs import (
    HALF,
    LEVEL,
    LEVEL_AT_STEPS,
    THIRD,
    answered,
    bare,
    gap,
    interval,
    photographs,
    rows,
    said,
    step,
    step_on_photographs,
    time_of_step,
)


def sentences() -> Iterator[str]:
    by_steps, by_operations = gap(HALF), gap(HALF, "operations")
    photo_steps = gap(HALF, found=photographs, measure=TOP1)
    photo_operations = gap(HALF, "operations", found=photographs, measure=TOP1)
    yield (
        f"**It saves** {1 - rows()[HALF, 'steps'].step:.2f} of the operations of a training step "
        f"with the recommended plan, `half`. Spent on more steps, that gained "
        f"{bare(by_operations)} points of MRR on emojis ({by_operations.seeds} seeds) and "
        f"{bare(photo_operations)} points of zero-shot top-1 on photographs "
        f"({photo_operations.seeds} seeds"
    )
    yield f"**It costs**, at equal steps, {said(by_steps)} and {said(photo_steps)} points."
    level = answered(LEVEL_AT_STEPS)
    yield (
        f"`level`, at {step_on_photographs(LEVEL)} of the step, costs {said(level)} on photographs "
        f"({level.seeds} seeds, an interval of {interval(LEVEL_AT_STEPS)})."
    )
    yield (
        f"A step of ViT-B/16 takes [{time_of_step('half')} of the time](docs/speed.md), with "
        f"`third` {time_of_step('third')}."
    )
    third = gap(THIRD, "operations"), gap(THIRD, "operations", found=photographs, measure=TOP1)
    yield (
        f"`third`, at {step(THIRD, 'operations')} of the step, gained {bare(third[0])} and "
        f"{bare(third[1])} points ({third[0].seeds} and {third[1].seeds} seeds), more than every "
        f"other preset for training."
    )


NO_LOG = ("CC BY-SA 4.0", "a snapshot of 4.2", "| 4.57, 5.24 |", "torchvision 0.28")
"""Versions."""
