"""Neighbors and ranks, beside plain loops over all pairs."""

from __future__ import annotations

import numpy as np
import pytest

from elip_plugin.check import neighbors
from elip_plugin.check.neighbors import Rows, cosine_at, cosines, nearest_in, overlaps, ranks


def unit(rows: Rows) -> Rows:
    made: Rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return made


def features(count: int, noise: float, seed: int = 0) -> tuple[Rows, Rows]:
    generator = np.random.default_rng(seed)
    full = generator.normal(size=(count, 16))
    return unit(full), unit(full + noise * generator.normal(size=full.shape))


def by_hand(full: Rows, queries: Rows, index: Rows, k: int) -> list[float]:
    made = []
    for i in range(len(full)):
        others = [j for j in range(len(full)) if j != i]
        before = sorted(others, key=lambda j: -float(full[i] @ full[j]))[:k]
        after = sorted(others, key=lambda j: -float(queries[i] @ index[j]))[:k]
        made.append(len({*before} & {*after}) / k)
    return made


@pytest.mark.parametrize("at_a_time", [2**24, 7 * 60])
def test_overlaps(at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbors, "SIMILARITIES", at_a_time)
    full, pruned = features(60, 0.3)
    made = overlaps(full, pruned, [3, 10])
    for k in (3, 10):
        assert made[f"overlap@{k}"].tolist() == by_hand(full, pruned, pruned, k)
        assert made[f"query-overlap@{k}"].tolist() == by_hand(full, pruned, full, k)
        assert made[f"index-overlap@{k}"].tolist() == by_hand(full, full, pruned, k)
    assert 0.3 < made["overlap@10"].mean() < 0.95
    nearest = np.sort(full @ full.T, axis=1)[:, -4]  # the last is the picture itself
    np.testing.assert_allclose(cosine_at(full, 3), nearest, atol=1e-6)


def test_equal_features_have_equal_neighbors() -> None:
    full, _ = features(30, 0)
    assert all((values == 1).all() for values in overlaps(full, full, [5, 29]).values())
    assert cosines(full, full) == pytest.approx(1)


def test_a_copy_may_take_the_place_of_a_picture() -> None:
    """Which of several equal pictures is found is chance, and no drift."""
    full, _ = features(20, 0)
    twice = np.concatenate([full, full, full])
    noise = np.random.default_rng(0).normal(size=twice.shape) * 1e-8
    made = overlaps(twice, unit(twice + noise.astype(np.float32)), [1, 4])
    assert all((values == 1).all() for values in made.values())


def test_nearest_are_sorted() -> None:
    similar = np.array([[0.1, 0.9, 0.5, 0.7]], np.float32)
    assert nearest_in(similar, 3).tolist() == [[1, 3, 2]]


def test_ranks() -> None:
    pictures, texts = features(12, 1.0)
    own = np.array([0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5])
    of_texts, of_pictures = ranks(pictures, texts[:6], own)
    similar = pictures @ texts[:6].T
    for i in range(12):
        assert of_texts[i] == 1 + (similar[i] > similar[i, own[i]]).sum()
        rivals = [j for j in range(12) if own[j] != own[i]]
        assert of_pictures[i] == 1 + (similar[rivals, own[i]] > similar[i, own[i]]).sum()


def test_features_that_are_all_equal_are_no_success() -> None:
    same = unit(np.ones((5, 4)))
    of_texts, of_pictures = ranks(same, same, np.arange(5))
    assert of_texts.tolist() == of_pictures.tolist() == [3] * 5
