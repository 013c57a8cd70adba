"""Differences between variants over paired seeds, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Scores = Mapping[str, Mapping[int, float]]
"""A score by variant and seed."""


@dataclass(frozen=True)
class Difference:
    """How much one variant's score is above another's.

    Attributes:
        mean: Estimate of the difference.
        half: Half the width of its 95% interval; NaN where the seeds are too few for one.
        seeds: Seeds of the variant.
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


class Comparison:
    """Least squares of a score on variant and seed, which pairs the seeds.

    All variants share one estimate of the noise, so that few seeds of each suffice; variants
    may have different numbers of seeds.

    Args:
        scores: The scores; every seed with all its variants.
    """

    def __init__(self, scores: Scores) -> None:
        import numpy as np
        import statsmodels.api as sm

        self.scores = scores
        self.variants = list(scores)
        seeds = sorted({seed for row in scores.values() for seed in row})
        rows, values = [], []
        for variant, row in scores.items():
            for seed, value in row.items():
                columns = [float(variant == other) for other in self.variants]
                rows.append(columns + [float(seed == other) for other in seeds[1:]])
                values.append(value)
        self._width = len(self.variants) + len(seeds) - 1
        self._fit: Any = sm.OLS(np.array(values), np.array(rows)).fit()

    def difference(self, variant: str, other: str) -> Difference:
        """Compare two variants.

        Args:
            variant: The one.
            other: The one that it is compared with.

        Returns:
            The variant's score minus the other's.
        """
        seeds = len(self.scores[variant])
        contrast = [0.0] * self._width
        contrast[self.variants.index(variant)] += 1
        contrast[self.variants.index(other)] -= 1
        if self._fit.df_resid < 1 or variant == other:
            mean = float(self._fit.params @ contrast)
            return Difference(mean, 0.0 if variant == other else math.nan, seeds)
        test = self._fit.t_test(contrast)
        low, high = test.conf_int(alpha=0.05)[0]
        return Difference(float(test.effect[0]), float(high - low) / 2, seeds)
