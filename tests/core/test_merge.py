"""Keeping and merging, against a reference that takes one sample and one token at a time."""

from __future__ import annotations

import pytest
import torch
from tensors import LOW, assert_exact, autocast, rand_scores, randn
from torch import Tensor

from elip_plugin.core.merge import keep_and_merge
from elip_plugin.core.select import select


def slow_stage(x: Tensor, scores: Tensor, keep: int, *, prefix: int, merge: bool) -> Tensor:
    """Keep, drop and merge one sample and one token at a time."""
    batch = []
    for tokens, row in zip(x, scores.tolist()):
        ranked = sorted(range(len(row)), key=lambda j: (-row[j], j))
        kept, dropped = sorted(ranked[:keep]), ranked[keep:]
        out = [tokens[i] for i in range(prefix)] + [tokens[prefix + j] for j in kept]
        if merge:
            total = sum(row[j] for j in dropped) + 1e-6
            parts = [row[j] / total * tokens[prefix + j] for j in dropped]
            out.append(torch.stack(parts).sum(dim=0))
        batch.append(torch.stack(out))
    return torch.stack(batch)


def fast_stage(x: Tensor, scores: Tensor, keep: int, *, prefix: int, merge: bool) -> Tensor:
    selection = select(scores, keep)
    return keep_and_merge(x, selection if merge else selection._replace(weights=None), prefix)


either_merge = pytest.mark.parametrize("merge", [True, False])
any_prefix = pytest.mark.parametrize("prefix", [0, 1, 5])


@either_merge
@any_prefix
@pytest.mark.parametrize(
    ("batch", "patches", "width", "keep"),
    [(1, 3, 1, 1), (2, 9, 4, 4), (3, 16, 8, 14), (4, 49, 5, 2), (2, 30, 3, 1)],
)
def test_a_stage_equals_the_slow_reference(
    batch: int, patches: int, width: int, keep: int, prefix: int, merge: bool
) -> None:
    x, scores = randn(batch, prefix + patches, width), rand_scores(batch, patches, seed=2)
    out = fast_stage(x, scores, keep, prefix=prefix, merge=merge)
    assert out.shape == (batch, prefix + keep + merge, width)
    assert_exact(out, slow_stage(x, scores, keep, prefix=prefix, merge=merge))


@either_merge
@any_prefix
def test_a_merged_token_is_an_ordinary_token_of_the_next_stage(prefix: int, merge: bool) -> None:
    outs = []
    for stage in (fast_stage, slow_stage):
        x = stage(randn(3, prefix + 16, 4), rand_scores(3, 16), 9, prefix=prefix, merge=merge)
        scores = rand_scores(3, 9 + merge, seed=5)
        scores[0, -1], scores[1, -1] = 0, 1  # dropped in one sample, kept in another
        outs.append(stage(x, scores, 4, prefix=prefix, merge=merge))
    assert_exact(*outs)


@either_merge
@any_prefix
def test_gradient_equals_that_of_the_slow_reference(prefix: int, merge: bool) -> None:
    gradients = []
    for stage in (fast_stage, slow_stage):
        x, scores = randn(3, prefix + 16, 4).requires_grad_(), rand_scores(3, 16)
        out = stage(x, scores, 6, prefix=prefix, merge=merge)
        (out * randn(*out.shape, seed=4)).sum().backward()
        gradients.append(x.grad)
    assert_exact(*gradients)


@either_merge
def test_gradient_reaches_the_dropped_only_through_the_merged_token(merge: bool) -> None:
    x, scores = randn(3, 17, 4).requires_grad_(), rand_scores(3, 16)
    selection = select(scores, 6)
    applied = selection if merge else selection._replace(weights=None)
    keep_and_merge(x, applied, 1).sum().backward()
    assert x.grad is not None
    reached = x.grad.abs().sum(dim=-1) > 0
    assert reached[:, 0].all()
    assert reached[:, 1:].gather(1, selection.kept).all()
    assert (reached[:, 1:].gather(1, selection.dropped) == merge).all()


def test_gradients_pass_gradcheck() -> None:
    selection = select(rand_scores(2, 6), 3)
    x = randn(2, 7, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: keep_and_merge(x, selection, 1), x)


@either_merge
@pytest.mark.parametrize("in_autocast", [False, True])
@pytest.mark.parametrize("dtype", [LOW, torch.float32, torch.float64])
def test_tokens_keep_their_dtype(dtype: torch.dtype, in_autocast: bool, merge: bool) -> None:
    with autocast(in_autocast):
        x, scores = randn(2, 10, 4).to(dtype), rand_scores(2, 9).float()
        assert fast_stage(x, scores, 4, prefix=1, merge=merge).dtype == dtype


@pytest.mark.parametrize("in_autocast", [False, True])
@pytest.mark.parametrize("dtype", [LOW, torch.float32])
def test_merging_rounds_to_the_tokens_dtype_only_once(
    dtype: torch.dtype, in_autocast: bool
) -> None:
    x, scores = (3 + randn(2, 197, 16)).to(dtype), rand_scores(2, 196)
    with autocast(in_autocast):
        merged = fast_stage(x, scores.float(), 98, prefix=1, merge=True)[:, -1]
    expected = slow_stage(x.double(), scores, 98, prefix=1, merge=True)[:, -1]
    error = ((merged.double() - expected) / expected).abs().max()
    assert error < (2**-8 if dtype == LOW else 1e-6)


def test_kept_tokens_are_copied_bitwise() -> None:
    x, scores = randn(2, 10, 4).to(LOW), rand_scores(2, 9).float()
    selection = select(scores, 4)
    out = keep_and_merge(x, selection, 1)
    assert torch.equal(out[:, 0], x[:, 0])
    for b in range(2):
        assert torch.equal(out[b, 1:5], x[b, 1:][selection.kept[b]])


def test_merging_leaves_the_tokens_as_they_were() -> None:
    x = randn(2, 10, 4)
    fast_stage(x, rand_scores(2, 9), 4, prefix=1, merge=True).zero_()
    assert torch.equal(x, randn(2, 10, 4))
