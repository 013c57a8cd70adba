"""How sure a mean over pictures is: bootstrap intervals, and a bound for pictures not looked at.

Shapes: N pictures, M quantities, R draws.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from elip_plugin.check.neighbors import Values

DRAWS = 2000
"""Resampled sets of pictures."""

CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A mean over pictures, and the interval that holds it with 95% confidence."""

    mean: float
    low: float
    high: float


def resampled_means(values: Values, seed: int = 0, draws: int = DRAWS) -> Values:
    """Return the means [R, M] of as many pictures as there are [N, M], drawn with replacement."""
    generator, count = np.random.default_rng(seed), len(values)
    means = np.empty((draws, values.shape[1]))
    for i in range(draws):
        means[i] = values[generator.integers(count, size=count)].mean(axis=0)
    return means


def estimate(values: Values, seed: int = 0) -> list[Estimate]:
    """Estimate the mean of each quantity [N, M], with bootstrap intervals (percentiles)."""
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(resampled_means(values, seed), (tail, 100 - tail), axis=0)
    means = values.mean(axis=0)
    return [Estimate(*map(float, values)) for values in zip(means, low, high)]


def bound_for_others(values: Values, others: int, seed: int = 0) -> float:
    """Return what the mean over other pictures of the same kind is not below, at 95% confidence.

    Both means vary, that of `values` [N] and that of the others, so this is lower than the end of
    an interval for the mean of all such pictures. One picture with the value 0 is added, as if the
    next one failed: some dozens of pictures without a fault do not show that there is none.
    """
    cautious: NDArray[np.float64] = np.append(values, 0.0)
    means = resampled_means(cautious[:, None], seed)[:, 0]
    below = cautious.mean() - np.quantile(means, 1 - CONFIDENCE)
    return float(cautious.mean() - np.sqrt(1 + len(values) / others) * below)


def halves(count: int, seed: int = 0) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Deal pictures into two halves by chance; the first is the smaller one of an odd number."""
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[: count // 2]), np.sort(order[count // 2 :])
