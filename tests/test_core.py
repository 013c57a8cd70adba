"""The method on plain tensors, against slow references written from the paper's rules."""

from __future__ import annotations

import itertools
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from elip_plugin.core.prune import Selection, reduce, select
from elip_plugin.core.score import LOOK, SCORE, class_attention, probe, score

LOW = torch.bfloat16


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rand_scores(*shape: int, seed: int = 0) -> Tensor:
    """Positive scores, a third of them equal."""
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.where(scores < 0.33, torch.full_like(scores, 0.33), scores) / shape[-1]


def autocast(on: bool) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=LOW) if on else nullcontext()


def assert_exact(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


# Probe.


@pytest.mark.parametrize("text_weight", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_probe_blends_the_guide_into_the_class_token_only(text_weight: float) -> None:
    x, guide = randn(3, 7, 4), randn(3, 4, seed=1)
    y = probe(x, guide, text_weight)
    assert_exact(y[:, 0], text_weight * guide + (1 - text_weight) * x[:, 0])
    assert torch.equal(y[:, 1:], x[:, 1:])


def test_probe_of_weight_1_is_the_guide_and_of_0_is_the_class_token() -> None:
    x, guide = randn(3, 7, 4), randn(3, 4, seed=1)
    assert torch.equal(probe(x, guide, 1.0)[:, 0], guide)
    assert torch.equal(probe(x, guide, 0.0), x)


@pytest.mark.parametrize("text_weight", [0.0, 0.2, 1.0])
def test_probe_without_a_guide_is_the_image(text_weight: float) -> None:
    x = randn(3, 7, 4)
    assert torch.equal(probe(x, None, text_weight), x)


@pytest.mark.parametrize("with_guide", [True, False])
@pytest.mark.parametrize("text_weight", [0.0, 0.2])
def test_probe_is_detached_and_leaves_its_inputs(text_weight: float, with_guide: bool) -> None:
    x, guide = randn(3, 7, 4).requires_grad_(), randn(3, 4, seed=1).requires_grad_()
    y = probe(x, guide if with_guide else None, text_weight)
    assert not y.requires_grad
    assert torch.equal(x, randn(3, 7, 4))
    assert torch.equal(guide, randn(3, 4, seed=1))


@pytest.mark.parametrize("guide_dtype", [LOW, torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [LOW, torch.float32, torch.float64])
def test_probe_has_the_dtype_of_the_tokens(dtype: torch.dtype, guide_dtype: torch.dtype) -> None:
    assert probe(randn(2, 3, 4).to(dtype), randn(2, 4).to(guide_dtype), 0.2).dtype == dtype


# One attention row.


def slow_row(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Row 0 of attention over all tokens [B, H, T, d], head by head, averaged."""
    rows = torch.zeros(keys.shape[0], keys.shape[2], dtype=keys.dtype)
    batch, heads = keys.shape[:2]
    for b, h in itertools.product(range(batch), range(heads)):
        attention = torch.softmax(scale * queries[b, h] @ keys[b, h].T, dim=-1)
        rows[b] += attention[0] / heads
    return rows


@pytest.mark.parametrize("shape", [(1, 1, 2, 3), (2, 3, 7, 4), (3, 4, 20, 8)])
@pytest.mark.parametrize("scale", [0.5, 1.7])
def test_class_attention_is_row_0_of_full_attention(shape: tuple[int, ...], scale: float) -> None:
    queries, keys = randn(*shape), randn(*shape, seed=1)
    row = class_attention(queries[:, :, 0], keys, scale)
    assert_exact(row, slow_row(queries, keys, scale))
    assert_exact(row.sum(dim=1), torch.ones(shape[0], dtype=row.dtype))


@pytest.mark.parametrize("in_autocast", [False, True])
@pytest.mark.parametrize(
    ("dtype", "wide"),
    [(LOW, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_class_attention_is_computed_in_float32_or_wider(
    dtype: torch.dtype, wide: torch.dtype, in_autocast: bool
) -> None:
    queries, keys = 3 * randn(2, 3, 50, 8).to(dtype), 3 * randn(2, 3, 50, 8, seed=1).to(dtype)
    with autocast(in_autocast):
        row = class_attention(queries[:, :, 0], keys, 0.5)
    assert row.dtype == wide
    error = (row.double() - slow_row(queries.double(), keys.double(), 0.5)).abs().max()
    assert error < (1e-14 if wide == torch.float64 else 1e-6)


# Look ahead.


class Call(NamedTuple):
    block: int
    mode: str
    tokens: Tensor
    grad: bool
    autocast: tuple[bool, torch.dtype, bool]


class FakeBlock:
    """Doubles the tokens to look; gives a known row to score; records each call."""

    def __init__(self, index: int, calls: list[Call]) -> None:
        self.index, self.calls = index, calls

    def __call__(self, tokens: Tensor, *, elip: str) -> Tensor:
        state = (
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.is_autocast_cache_enabled(),
        )
        self.calls.append(Call(self.index, elip, tokens, torch.is_grad_enabled(), state))
        return tokens.sum(dim=-1) if elip == SCORE else 2 * tokens


def fake_blocks(count: int) -> tuple[list[FakeBlock], list[Call]]:
    calls: list[Call] = []
    return [FakeBlock(i, calls) for i in range(count)], calls


@pytest.mark.parametrize("lookahead", [1, 2, 6])
def test_blocks_are_looked_through_in_order_and_only_the_last_scores(lookahead: int) -> None:
    x, guide = randn(2, 9, 4), randn(2, 4, seed=1)
    blocks, calls = fake_blocks(lookahead)
    score(x, guide, blocks, text_weight=0.2, prefix=1)
    assert [call.block for call in calls] == list(range(lookahead))
    assert [call.mode for call in calls] == [LOOK] * (lookahead - 1) + [SCORE]
    for i, call in enumerate(calls):
        assert torch.equal(call.tokens, 2**i * probe(x, guide, 0.2))


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_scores_are_the_last_blocks_row_without_prefix_columns(prefix: int) -> None:
    x = randn(2, 9, 4)
    blocks, _ = fake_blocks(3)
    scores = score(x, None, blocks, text_weight=0.2, prefix=prefix)
    assert torch.equal(scores, 4 * x.sum(dim=-1)[:, prefix:])


def test_scoring_runs_without_gradient_and_restores_it() -> None:
    x, guide = randn(2, 9, 4).requires_grad_(), randn(2, 4, seed=1).requires_grad_()
    blocks, calls = fake_blocks(3)
    scores = score(x, guide, blocks, text_weight=0.2, prefix=1)
    assert not scores.requires_grad
    assert not any(call.grad or call.tokens.requires_grad for call in calls)
    assert torch.is_grad_enabled()


def test_scoring_keeps_autocast_but_not_its_cache() -> None:
    blocks, calls = fake_blocks(3)
    with autocast(True):
        score(randn(2, 9, 4), None, blocks, text_weight=0.2, prefix=1)
        assert torch.is_autocast_cache_enabled()
    assert {call.autocast for call in calls} == {(True, LOW, False)}


def test_scoring_turns_no_autocast_on() -> None:
    blocks, calls = fake_blocks(2)
    score(randn(2, 9, 4), None, blocks, text_weight=0.2, prefix=1)
    with autocast(True), torch.autocast("cpu", enabled=False):
        score(randn(2, 9, 4), None, blocks, text_weight=0.2, prefix=1)
    assert not any(call.autocast[0] for call in calls)


def test_scoring_under_autocast_leaves_the_blocks_trainable() -> None:
    linear = torch.nn.Linear(4, 4)

    def block(tokens: Tensor, *, elip: str) -> Tensor:
        return linear(tokens).float().mean(dim=-1) if elip == SCORE else linear(tokens)

    x = randn(2, 9, 4, dtype=torch.float32)
    with autocast(True):
        score(x, None, [block, block], text_weight=0.2, prefix=1)
        linear(x).sum().backward()
    assert linear.weight.grad is not None


# Select.


def all_indices(selection: Selection) -> Tensor:
    return torch.cat([selection.kept, selection.dropped], dim=1).sort(dim=1).values


@pytest.mark.parametrize("keep", [1, 2, 7, 18])
@pytest.mark.parametrize("seed", range(3))
def test_kept_and_dropped_part_all_tokens_by_score(keep: int, seed: int) -> None:
    scores = rand_scores(4, 19, seed=seed)
    selection = select(scores, keep)
    assert selection.kept.shape == (4, keep)
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
    reduced = reduce(randn(2, 10, 3), selection, prefix=1, merge=True)
    assert torch.equal(reduced[:, -1], torch.zeros(2, 3, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_stay_in_the_precision_of_the_scores(dtype: torch.dtype) -> None:
    with autocast(True):
        selection = select(rand_scores(2, 9).to(dtype), 4)
    assert selection.weights.dtype == dtype


# Reduce.


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
    return reduce(x, select(scores, keep), prefix=prefix, merge=merge)


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
    reduce(x, selection, prefix=1, merge=merge).sum().backward()
    assert x.grad is not None
    reached = x.grad.abs().sum(dim=-1) > 0
    assert reached[:, 0].all()
    assert reached[:, 1:].gather(1, selection.kept).all()
    assert (reached[:, 1:].gather(1, selection.dropped) == merge).all()


def test_no_gradient_flows_through_the_weights() -> None:
    x = randn(3, 17, 4).requires_grad_()
    blocks, _ = fake_blocks(2)
    scores = score(x, None, blocks, text_weight=0.2, prefix=1).abs()
    selection = select(scores, 6)
    assert not selection.weights.requires_grad
    reduce(x, selection, prefix=1, merge=True)[:, -1].sum().backward()
    assert x.grad is not None
    reached = x.grad[:, 1:, 0].gather(1, selection.dropped)
    assert_exact(reached, selection.weights)


def test_gradients_pass_gradcheck() -> None:
    selection = select(rand_scores(2, 6), 3)
    x = randn(2, 7, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: reduce(x, selection, prefix=1, merge=True), x)


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
    out = reduce(x, selection, prefix=1, merge=True)
    assert torch.equal(out[:, 0], x[:, 0])
    for b in range(2):
        assert torch.equal(out[b, 1:5], x[b, 1:][selection.kept[b]])


def test_reducing_leaves_the_tokens_as_they_were() -> None:
    x = randn(2, 10, 4)
    fast_stage(x, rand_scores(2, 9), 4, prefix=1, merge=True).zero_()
    assert torch.equal(x, randn(2, 10, 4))


# No look at values: a meta tensor has none.


@either_merge
@any_prefix
@pytest.mark.parametrize("with_guide", [True, False])
def test_a_stage_never_looks_at_values(prefix: int, merge: bool, with_guide: bool) -> None:
    x = torch.empty(2, prefix + 9, 4, device="meta", requires_grad=True)
    guide = torch.empty(2, 4, device="meta") if with_guide else None
    blocks, _ = fake_blocks(2)
    scores = score(x, guide, blocks, text_weight=0.2, prefix=prefix)
    out = fast_stage(x, scores, 4, prefix=prefix, merge=merge)
    assert out.shape == (2, prefix + 4 + merge, 4)
    assert out.is_meta


def test_class_attention_never_looks_at_values() -> None:
    query, keys = torch.empty(2, 3, 4, device="meta"), torch.empty(2, 3, 9, 4, device="meta")
    assert class_attention(query, keys, 0.5).shape == (2, 9)
