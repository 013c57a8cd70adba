"""Time training steps of several models in turn, so that a drifting machine treats all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class StepTimes:
    """Times of one model's training steps.

    Attributes:
        seconds: Time of each counted step, in the order of the rounds.
        ratios: Each step's time over the baseline's in the same round.
    """

    seconds: tuple[float, ...]
    ratios: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median time of a step, seconds."""
        return statistics.median(self.seconds)

    @property
    def ratio(self) -> float:
        """Median of the per-round ratios to the baseline."""
        return statistics.median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """Lowest and highest per-round ratio."""
        return min(self.ratios), max(self.ratios)


def time_steps(
    steps: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 2
) -> dict[str, StepTimes]:
    """Run the steps in turn and time each.

    Args:
        steps: One step per model, by name; the first is the baseline. A step on an
            accelerator must wait for the device itself.
        rounds: How many rounds count, from 1 up.
        warmup: Rounds before those, not counted.

    Returns:
        The times by name.

    Raises:
        ValueError: If there is no round to count.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be 1 or more, got {rounds}")
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(warmup + rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    counted = {name: tuple(times[warmup:]) for name, times in seconds.items()}
    baseline = next(iter(counted.values()))
    return {
        name: StepTimes(times, tuple(a / b for a, b in zip(times, baseline, strict=True)))
        for name, times in counted.items()
    }
