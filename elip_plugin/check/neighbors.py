"""How near pictures are: cosines, nearest neighbors that stay, ranks of texts.

Shapes: N pictures, T texts, E features, k neighbors. All features have length 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from elip_plugin.check.store import Rows

Values = NDArray[np.float64]

WAYS = ("overlap", "query-overlap", "index-overlap")
"""Both pruned; pruned queries in an unpruned index; unpruned queries in a pruned index."""

SIMILARITIES = 2**24
"""Similarities in memory at a time."""

TIE = 2e-7
"""Cosines that differ by rounding alone are equal: a copy of a picture may take its place."""


def cosines(full: Rows, pruned: Rows) -> Values:
    """Return the cosine of each picture's unpruned and pruned features [N, E], as [N]."""
    products: Values = np.einsum("ne,ne->n", full, pruned, dtype=np.float64)
    return products


def overlaps(full: Rows, pruned: Rows, ks: Sequence[int]) -> dict[str, Values]:
    """Return which share of each picture's k nearest neighbors stays, as [N], by way and `@k`.

    A picture is no neighbor of itself. A neighbor stays if, unpruned, it is at least as near as the
    k-th nearest: where several are equally near, any of them will do.
    """
    most = max(ks)
    shares = {f"{way}@{k}": np.zeros(len(full)) for way in WAYS for k in ks}
    for rows in _chunks(len(full), len(full)):
        wanted = similarities(full, full, rows)
        nearest = -np.sort(-np.partition(wanted, -most, axis=1)[:, -most:], axis=1)
        for way, queries, index in zip(WAYS, (pruned, pruned, full), (pruned, full, pruned)):
            nearest_now = nearest_in(similarities(queries, index, rows), most)
            near = np.take_along_axis(wanted, nearest_now, axis=1)
            for k in ks:
                stays = near[:, :k] >= nearest[:, k - 1 : k] - TIE
                shares[f"{way}@{k}"][rows] = stays.mean(axis=1)
    return shares


def cosine_at(full: Rows, k: int) -> Values:
    """Return the cosine of each picture with its k-th nearest, as [N]; k is less than N."""
    values = np.zeros(len(full))
    for rows in _chunks(len(full), len(full)):
        values[rows] = np.partition(similarities(full, full, rows), -k, axis=1)[:, -k]
    return values


def similarities(queries: Rows, index: Rows, rows: slice) -> Rows:
    """Return the cosines of some pictures with all; with themselves, minus infinity.

    Args:
        queries: Features [N, E].
        index: Features [N, E].
        rows: Which queries, R of them.

    Returns:
        Cosines [R, N].
    """
    similar: Rows = queries[rows] @ np.asarray(index).T
    similar[np.arange(len(similar)), np.arange(rows.start, rows.start + len(similar))] = -np.inf
    return similar


def nearest_in(similar: Rows, k: int) -> NDArray[np.intp]:
    """Return the places of the k largest of each row [R, k], the largest first."""
    nearest = np.argpartition(-similar, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(similar, nearest, axis=1), axis=1, kind="stable")
    return np.take_along_axis(nearest, order, axis=1)


def ranks(pictures: Rows, texts: Rows, own: NDArray[np.intp]) -> tuple[Values, Values]:
    """Rank each picture's text among all texts, and the picture among all pictures for its text.

    Texts [T, E] are given once each, `own` says which is each picture's. Other pictures with the
    same text do not count, and ties count half. Ranks [N] start at 1.
    """
    of_texts, of_pictures = np.zeros(len(pictures)), np.zeros(len(pictures))
    for rows in _chunks(len(pictures), len(texts)):
        similar = pictures[rows] @ np.asarray(texts).T
        of_texts[rows] = _rank(similar, similar[np.arange(len(similar)), own[rows], None])
    for rows in _chunks(len(pictures), len(pictures)):
        similar = texts[own[rows]] @ np.asarray(pictures).T
        itself = np.arange(rows.start, rows.start + len(similar))
        wanted = similar[np.arange(len(similar)), itself, None].copy()
        same = own[rows, None] == own[None, :]
        same[np.arange(len(similar)), itself] = False
        similar[same] = -np.inf
        of_pictures[rows] = _rank(similar, wanted)
    return of_texts, of_pictures


def _rank(similar: Rows, wanted: Rows) -> Values:
    above, equal = (similar > wanted).sum(axis=1), (similar == wanted).sum(axis=1)
    ranks: Values = 1 + above + (equal - 1) / 2
    return ranks


def _chunks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, SIMILARITIES // max(1, columns))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))
