"""Time training steps of several models in turn, so that a drifting machine treats all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import TypedDict

WARMUP = 2
"""Rounds that are not counted."""


class StepTime(TypedDict):
    """Median time of a step, and its ratio to the baseline's: median, lowest and highest."""

    seconds: float
    ratio: float
    low: float
    high: float


def time_steps(steps: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, StepTime]:
    """Run the steps in turn and time each.

    Args:
        steps: One step per model, by name; the first is the baseline.
        rounds: How many rounds count, from 1 up.

    Returns:
        The times by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(WARMUP + rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    counted = {name: times[WARMUP:] for name, times in seconds.items()}
    baseline = next(iter(counted.values()))
    found: dict[str, StepTime] = {}
    for name, times in counted.items():
        ratios = [one / other for one, other in zip(times, baseline, strict=True)]
        found[name] = {
            "seconds": statistics.median(times),
            "ratio": statistics.median(ratios),
            "low": min(ratios),
            "high": max(ratios),
        }
    return found
