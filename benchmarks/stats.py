"""Differences between variants over paired seeds, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean

Scores = Mapping[int, float]
"""A score by seed."""


@dataclass(frozen=True)
class Difference:
    """How much one variant's score is above another's.

    Attributes:
        mean: Mean of the differences, seed by seed.
        half: Half the width of its interval, of 95% where nothing else is said; NaN where the
            seeds are too few for one.
        seeds: Seeds that both have.
    """

    mean: float
    half: float
    seeds: int

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.half


def difference(variant: Scores, other: Scores, confidence: float = 0.95) -> Difference:
    """Compute a difference with its paired t interval over the seeds that both variants have.

    Each pair of variants has its own estimate of the noise: variants differ in theirs.

    Args:
        variant: Scores of the one.
        other: Scores of the one that it is compared with; at least one seed in common.
        confidence: Of the interval.

    Returns:
        The variant's score minus the other's.
    """
    seeds = sorted(set(variant) & set(other))
    gaps = [variant[seed] - other[seed] for seed in seeds]
    if variant == other:
        return Difference(0.0, 0.0, len(seeds))
    if len(seeds) < 2:
        return Difference(mean(gaps), math.nan, len(seeds))
    from scipy import stats

    low, high = stats.ttest_1samp(gaps, 0.0).confidence_interval(confidence)
    return Difference(mean(gaps), float(high - low) / 2, len(seeds))
