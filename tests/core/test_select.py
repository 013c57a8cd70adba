"""Which tokens are kept, and how the others are weighed."""

from __future__ import annotations

import pytest
import torch
from tensors import assert_exact, autocast, rand_scores, randn
from torch import Tensor

from elip_plugin.core.merge import keep_and_merge
from elip_plugin.core.select import Selection, select


def all_indices(selection: Selection) -> Tensor:
    return torch.cat([selection.kept, selection.dropped], dim=1).sort(dim=1).values


@pytest.mark.parametrize("keep", [1, 2, 7, 18])
@pytest.mark.parametrize("seed", range(3))
def test_kept_and_dropped_part_all_tokens_by_score(keep: int, seed: int) -> None:
    scores = rand_scores(4, 19, seed=seed)
    selection = select(scores, keep)
    assert selection.kept.shape == (4, keep)
    assert selection.weights is not None
    assert selection.dropped.shape == selection.weights.shape == (4, 19 - keep)
    assert torch.equal(all_indices(selection), torch.arange(19).expand(4, -1))
    least_kept = scores.gather(1, selection.kept).min(dim=1).values
    best_dropped = scores.gather(1, selection.dropped).max(dim=1).values
    assert (least_kept >= best_dropped).all()


@pytest.mark.parametrize("seed", range(3))
def test_kept_tokens_stay_in_their_order(seed: int) -> None:
    kept = select(rand_scores(4, 50, seed=seed), 20).kept
    assert (kept.diff(dim=1) > 0).all()


@pytest.mark.parametrize("tokens", [5, 50, 1000])
def test_ties_go_to_the_earlier_token(tokens: int) -> None:
    keep = tokens // 2
    selection = select(torch.full((3, tokens), 0.25), keep)
    assert torch.equal(selection.kept, torch.arange(keep).expand(3, -1))


def test_ties_at_the_cut_go_to_the_earlier_token() -> None:
    scores = torch.tensor([[0.1, 0.3, 0.2, 0.2, 0.2, 0.4], [0.2, 0.2, 0.4, 0.2, 0.3, 0.1]])
    assert select(scores, 3).kept.tolist() == [[1, 2, 5], [0, 2, 4]]


def test_each_sample_chooses_for_itself() -> None:
    scores = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]])
    assert select(scores, 1).kept.tolist() == [[0], [2]]


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_weights_are_scores_over_their_sum_and_the_floor(scale: float) -> None:
    scores = rand_scores(4, 19) * scale
    selection = select(scores, 7)
    dropped = scores.gather(1, selection.dropped)
    for b in range(4):
        assert_exact(selection.weights[b], dropped[b] / (dropped[b].sum() + 1e-6))


def test_scores_of_zero_give_weights_of_zero() -> None:
    selection = select(torch.zeros(2, 9), 4)
    assert torch.equal(selection.weights, torch.zeros(2, 5))
    reduced = keep_and_merge(randn(2, 10, 3), selection, 1)
    assert torch.equal(reduced[:, -1], torch.zeros(2, 3, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_stay_in_the_precision_of_the_scores(dtype: torch.dtype) -> None:
    with autocast(True):
        selection = select(rand_scores(2, 9).to(dtype), 4)
    assert selection.weights.dtype == dtype
