"""Retrieval among names, on similarities made by hand."""

from __future__ import annotations

import pytest
import torch

from benchmarks.data.retrieval import name_retrieval


def test_ranks_of_pictures_and_names() -> None:
    similarity = torch.tensor(
        [
            # names: 0    1    2
            [0.9, 0.1, 0.2],  # name 0: first of the names
            [0.3, 0.5, 0.4],  # name 0: last
            [0.2, 0.6, 0.7],  # name 1: second
            [0.1, 0.0, 0.3],  # name 2: first
        ]
    )
    scores = name_retrieval(similarity, torch.tensor([0, 0, 1, 2]))
    # Picture to name: 1, 3, 2, 1. Name 0 has the best picture of all; name 1 has its one first;
    # before the picture of name 2 there are two others.
    assert scores["i2t_mrr"] == pytest.approx((1 + 1 / 3 + 1 / 2 + 1) / 4)
    assert scores["t2i_mrr"] == pytest.approx((1 + 1 + 1 / 3) / 3)
    assert scores["mrr"] == pytest.approx((scores["i2t_mrr"] + scores["t2i_mrr"]) / 2)
    assert scores["i2t_r1"] == pytest.approx(2 / 4)
    assert scores["t2i_r1"] == pytest.approx(2 / 3)
    assert scores["i2t_r5"] == scores["t2i_r5"] == 1


def test_a_names_other_pictures_do_not_count_against_it() -> None:
    similarity = torch.tensor([[0.2, 0.0], [0.9, 0.0], [0.8, 0.9], [0.5, 0.1]])
    scores = name_retrieval(similarity, torch.tensor([0, 0, 1, 0]))
    assert scores["mrr"] == 1 - (1 - (3 + 1) / 4) / 2  # all first
    worse = similarity.clone()
    worse[2, 0] = 0.95  # a picture of name 1 is now before all of name 0, and prefers name 0
    scores = name_retrieval(worse, torch.tensor([0, 0, 1, 0]))
    assert scores["t2i_mrr"] == pytest.approx((1 / 2 + 1) / 2)
    assert scores["i2t_mrr"] == pytest.approx((3 + 1 / 2) / 4)


def test_a_tie_counts_against_the_model() -> None:
    scores = name_retrieval(torch.zeros(6, 3), torch.tensor([0, 0, 1, 1, 2, 2]))
    assert scores["i2t_mrr"] == pytest.approx(1 / 3)  # the last of three names
    assert scores["t2i_mrr"] == pytest.approx(1 / 5)  # after all four pictures of other names


def test_one_picture_per_name_is_retrieval_of_pairs() -> None:
    similarity = torch.randn(20, 20, generator=torch.Generator().manual_seed(0))
    scores = name_retrieval(similarity, torch.arange(20))
    turned = name_retrieval(similarity.t(), torch.arange(20))
    assert scores["i2t_mrr"] == pytest.approx(turned["t2i_mrr"])
    assert scores["i2t_r5"] == pytest.approx(turned["t2i_r5"])


@pytest.mark.parametrize(
    ("similarity", "own", "message"),
    [
        (torch.zeros(3), torch.zeros(3), "must be"),
        (torch.zeros(3, 2), torch.tensor([0, 1]), "must be"),
        (torch.zeros(3, 3), torch.tensor([0, 1, 1]), "each of 0 to 2"),
        (torch.zeros(2, 2), torch.tensor([0, 2]), "each of 0 to 1"),
        (torch.full((2, 2), torch.nan), torch.tensor([0, 1]), "not finite"),
    ],
)
def test_what_has_no_rank_is_refused(
    similarity: torch.Tensor, own: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        name_retrieval(similarity, own)
