"""Scores of pruned features beside unpruned ones, with intervals over photographs and heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

RESAMPLES = 1000
NEIGHBORS = 10

Hits = dict[str, np.ndarray]
"""By score: what each head [heads, photographs] made of each photograph."""


def hits(found: Sequence[tuple[Tensor, Tensor]]) -> Hits:
    """Turn the ranks of each head into scores of each photograph."""
    to_image = torch.stack([ranks for ranks, _ in found]).float()
    to_text = torch.stack([ranks for _, ranks in found]).float()
    made = {f"t2i R@{k}": (to_image < k).float().mean(2) for k in (1, 5, 10)}
    made |= {f"i2t R@{k}": (to_text < k).float() for k in (1, 5, 10)}
    made["MRR"] = (1 / (to_image + 1)).mean(2)
    return {name: values.numpy() for name, values in made.items()}


def interval(variant: np.ndarray, other: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Return the mean difference of two [heads, photographs], and its 95% bootstrap interval.

    Photographs and heads are drawn anew together, the same ones for both.
    """
    gaps = variant - other
    draw = np.random.default_rng(seed)
    heads, photos = gaps.shape
    means = []
    for _ in range(RESAMPLES):
        rows = draw.integers(heads, size=heads)
        columns = draw.integers(photos, size=photos)
        means.append(gaps[rows].mean(0)[columns].mean())
    low, high = np.percentile(means, [2.5, 97.5])
    return float(gaps.mean()), float(low), float(high)


def points(found: Sequence[float]) -> str:
    """Write a difference with its interval, in points."""
    middle, low, high = (100 * x for x in found)
    return f"{middle:+.1f} [{low:+.1f}, {high:+.1f}]"


def overlap(pruned: Tensor, unpruned: Tensor) -> float:
    """Return which share of the ten nearest neighbors among the photographs stays."""
    return _common(_nearest(pruned, pruned), _nearest(unpruned, unpruned))


def overlap_in_index(pruned: Tensor, unpruned: Tensor) -> float:
    """Return which share of the ten nearest unpruned features a pruned one finds, but its own."""
    return _common(_nearest(pruned, unpruned), _nearest(unpruned, unpruned))


def _nearest(queries: Tensor, index: Tensor) -> Tensor:
    """Return the places of the nearest others [N, 10]."""
    cosines = F.normalize(queries, dim=1) @ F.normalize(index, dim=1).T
    return cosines.fill_diagonal_(-9).topk(NEIGHBORS, dim=1).indices


def _common(a: Tensor, b: Tensor) -> float:
    return float((a[:, :, None] == b[:, None]).any(2).float().mean())


def mixed(pruned: Tensor, unpruned: Tensor) -> float:
    """Return how often a pruned feature finds its own photograph among unpruned ones."""
    found = (F.normalize(pruned, dim=1) @ F.normalize(unpruned, dim=1).T).argmax(1)
    return float((found == torch.arange(len(pruned))).float().mean())


def cosine(pruned: Tensor, unpruned: Tensor) -> float:
    """Return the mean cosine."""
    return float(F.cosine_similarity(pruned, unpruned).mean())


AGAINST_UNPRUNED: dict[str, Callable[[Tensor, Tensor], float]] = {
    "overlap": overlap,
    "overlap in index": overlap_in_index,
    "mixed": mixed,
    "cosine": cosine,
}
