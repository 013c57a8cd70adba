"""Scoring on plain tensors, against slow references written from the paper's rules."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from tensors import LOW, assert_exact, autocast, randn
from torch import Tensor

from elip_plugin.core.blocks import attention_row, look_ahead
from elip_plugin.core.context import StageContext
from elip_plugin.core.guide import guide_from_batch
from elip_plugin.core.merge import keep_and_merge
from elip_plugin.core.precision import uncached
from elip_plugin.core.score import blend_class_token, query_token, score
from elip_plugin.core.select import select
from elip_plugin.core.stage import PlannedStage

# Blend.


@pytest.mark.parametrize("text_weight", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_blending_weighs_guide_and_class_token(text_weight: float) -> None:
    token, guide = randn(3, 1, 4), randn(3, 4, seed=1)
    blended = blend_class_token(token, guide, text_weight)
    assert_exact(blended[:, 0], text_weight * guide + (1 - text_weight) * token[:, 0])


def test_a_weight_of_1_is_the_guide_and_of_0_is_the_class_token() -> None:
    token, guide = randn(3, 1, 4), randn(3, 4, seed=1)
    assert torch.equal(blend_class_token(token, guide, 1.0)[:, 0], guide)
    assert torch.equal(blend_class_token(token, guide, 0.0), token)


@pytest.mark.parametrize("text_weight", [0.0, 0.2, 1.0])
def test_without_a_guide_the_class_token_stays(text_weight: float) -> None:
    token = randn(3, 1, 4)
    assert torch.equal(blend_class_token(token, None, text_weight), token)


@pytest.mark.parametrize("guide_dtype", [LOW, torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [LOW, torch.float32, torch.float64])
def test_blending_has_the_dtype_of_the_token(dtype: torch.dtype, guide_dtype: torch.dtype) -> None:
    blended = blend_class_token(randn(2, 1, 4).to(dtype), randn(2, 4).to(guide_dtype), 0.2)
    assert blended.dtype == dtype


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_the_query_is_the_class_token_or_the_mean_of_the_patches(prefix: int) -> None:
    x = randn(2, 9, 4)
    assert torch.equal(query_token(x, prefix, True), x[:, :1])
    assert_exact(
        query_token(x, prefix, False)[:, 0], sum(x[:, i] for i in range(prefix, 9)) / (9 - prefix)
    )


# One attention row.


def slow_row(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Row 0 of attention over all tokens [B, H, T, d], head by head, averaged."""
    rows = torch.zeros(keys.shape[0], keys.shape[2], dtype=keys.dtype)
    batch, heads = keys.shape[:2]
    for b, h in itertools.product(range(batch), range(heads)):
        attention = torch.softmax(scale * queries[b, h] @ keys[b, h].T, dim=-1)
        rows[b] += attention[0] / heads
    return rows


def block_of(queries: Tensor, keys: Tensor, scale: float | None) -> Any:
    """A block whose queries and keys [B, H, T, d] are given; it expects tokens [B, T, H * d]."""

    def elip_query_and_keys(query: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        assert torch.equal(query, x[:, :1])
        return queries[:, :, :1], keys

    return SimpleNamespace(elip_query_and_keys=elip_query_and_keys, elip_scale=scale)


@pytest.mark.parametrize("shape", [(1, 1, 2, 3), (2, 3, 7, 4), (3, 4, 20, 8)])
@pytest.mark.parametrize("scale", [0.5, 1.7, None])
def test_attention_row_is_row_0_of_full_attention(
    shape: tuple[int, ...], scale: float | None
) -> None:
    queries, keys = randn(*shape), randn(*shape, seed=1)
    row = attention_row(block_of(queries, keys, scale), randn(shape[0], shape[2], 5))
    assert_exact(row, slow_row(queries, keys, scale or shape[3] ** -0.5))
    assert_exact(row.sum(dim=1), torch.ones(shape[0], dtype=row.dtype))


@pytest.mark.parametrize("in_autocast", [False, True])
@pytest.mark.parametrize(
    ("dtype", "wide"),
    [(LOW, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_attention_row_is_computed_in_float32_or_wider(
    dtype: torch.dtype, wide: torch.dtype, in_autocast: bool
) -> None:
    queries, keys = 3 * randn(2, 3, 50, 8).to(dtype), 3 * randn(2, 3, 50, 8, seed=1).to(dtype)
    with autocast(in_autocast):
        row = attention_row(block_of(queries, keys, 0.5), randn(2, 50, 5))
    assert row.dtype == wide
    error = (row.double() - slow_row(queries.double(), keys.double(), 0.5)).abs().max()
    assert error < (1e-14 if wide == torch.float64 else 1e-6)


# Look ahead.


class Call(NamedTuple):
    block: int
    mode: Any
    tokens: Tensor
    query: Tensor | None
    grad: bool
    autocast: tuple[bool, torch.dtype, bool]


class FakeBlock:
    """Doubles the tokens; gives a known row where one is asked for; records each call."""

    def __init__(self, index: int, calls: list[Call]) -> None:
        self.index, self.calls = index, calls

    def __call__(self, tokens: Tensor, *, run: Any = None, query: Tensor | None = None) -> Tensor:
        state = (
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.is_autocast_cache_enabled(),
        )
        self.calls.append(Call(self.index, run, tokens, query, torch.is_grad_enabled(), state))
        if run is not attention_row:
            return 2 * tokens
        return (tokens if query is None else tokens * query).sum(dim=-1)


def fake_blocks(count: int) -> tuple[list[FakeBlock], list[Call]]:
    calls: list[Call] = []
    return [FakeBlock(i, calls) for i in range(count)], calls


def scores_of(x: Tensor, blocks: Any, prefix: int, *query: Any, **fields: Any) -> Tensor:
    """Score by looking ahead through all of the blocks, as in a forward."""
    context = StageContext(prefix, *query, **{"blocks": blocks, "cache": uncached(x), **fields})
    return score(x, PlannedStage(0, len(blocks), 1, x.shape[1], 2), context)


@pytest.mark.parametrize("by_parts", [True, False])
@pytest.mark.parametrize("lookahead", [1, 2, 6])
def test_blocks_are_looked_through_in_order_and_only_the_last_scores(
    lookahead: int, by_parts: bool
) -> None:
    x, guide = randn(2, 9, 4), randn(2, 4, seed=1)
    blocks, calls = fake_blocks(lookahead)
    scores_of(x, blocks, 1, guide, 0.2, ahead_by_parts=by_parts)
    assert [call.block for call in calls] == list(range(lookahead))
    ahead = [look_ahead if by_parts else None] * (lookahead - 1)
    assert [call.mode for call in calls] == [*ahead, attention_row]
    y = torch.cat([blend_class_token(x[:, :1], guide, 0.2), x[:, 1:]], dim=1)
    for i, call in enumerate(calls):
        assert torch.equal(call.tokens, 2**i * y)
        assert call.query is None  # the row of the class token, which is blended already


@pytest.mark.parametrize("weight", [0.0, 0.2, 1.0])
def test_the_guide_goes_into_the_class_token_only(weight: float) -> None:
    x, guide = randn(3, 7, 4), randn(3, 4, seed=1)
    blocks, calls = fake_blocks(1)
    scores_of(x, blocks, 1, guide, weight)
    assert_exact(calls[0].tokens[:, 0], weight * guide + (1 - weight) * x[:, 0])
    assert torch.equal(calls[0].tokens[:, 1:], x[:, 1:])
    scores_of(x, blocks, 1, None, weight)
    assert torch.equal(calls[1].tokens, x)


def test_without_a_class_query_the_mean_of_the_patches_asks_the_last_block() -> None:
    x, guide = randn(2, 9, 4), randn(2, 4, seed=1)
    blocks, calls = fake_blocks(3)
    scores_of(x, blocks, 2, guide, 0.2, class_query=False)
    for i, call in enumerate(calls):
        assert torch.equal(call.tokens, 2**i * x)
    assert [call.query is None for call in calls] == [True, True, False]
    mean = (4 * x[:, 2:]).mean(dim=1, keepdim=True)
    assert_exact(calls[-1].query, 0.2 * guide.unsqueeze(1) + 0.8 * mean)


@pytest.mark.parametrize("class_query", [True, False])
def test_a_guide_of_the_whole_batch_is_weighed_by_each_images_own_query(class_query: bool) -> None:
    x, texts = randn(2, 9, 4), randn(5, 4, seed=1)
    own = guide_from_batch(query_token(x, 1, class_query), texts)
    rows = [
        scores_of(x, fake_blocks(1)[0], 1, guide, 0.2, class_query, batch)
        for guide, batch in ((texts, True), (own, False))
    ]
    assert torch.equal(*rows) and not torch.allclose(own[0], own[1])


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_scores_are_the_last_blocks_row_without_prefix_columns(prefix: int) -> None:
    x = randn(2, 9, 4)
    blocks, _ = fake_blocks(3)
    scores = scores_of(x, blocks, prefix)
    assert torch.equal(scores, 4 * x.sum(dim=-1)[:, prefix:])


@pytest.mark.parametrize("class_query", [True, False])
@pytest.mark.parametrize("with_guide", [True, False])
def test_scoring_runs_without_gradient_and_leaves_its_inputs(
    with_guide: bool, class_query: bool
) -> None:
    x, guide = randn(2, 9, 4).requires_grad_(), randn(2, 4, seed=1).requires_grad_()
    blocks, calls = fake_blocks(3)
    scores = scores_of(x, blocks, 1, guide if with_guide else None, 0.2, class_query)
    assert not scores.requires_grad
    assert not any(call.grad or call.tokens.requires_grad for call in calls)
    assert torch.is_grad_enabled()
    assert torch.equal(x, randn(2, 9, 4)) and torch.equal(guide, randn(2, 4, seed=1))


def test_scoring_keeps_autocast_but_not_its_cache() -> None:
    blocks, calls = fake_blocks(3)
    with autocast(True):
        scores_of(randn(2, 9, 4), blocks, 1)
        assert torch.is_autocast_cache_enabled()
    assert {call.autocast for call in calls} == {(True, LOW, False)}


def test_scoring_turns_no_autocast_on() -> None:
    blocks, calls = fake_blocks(2)
    scores_of(randn(2, 9, 4), blocks, 1)
    with autocast(True), torch.autocast("cpu", enabled=False):
        scores_of(randn(2, 9, 4), blocks, 1)
    assert not any(call.autocast[0] for call in calls)


@pytest.mark.parametrize("by_parts", [True, False])
def test_scoring_under_autocast_leaves_the_blocks_trainable(by_parts: bool) -> None:
    linear = torch.nn.Linear(4, 4)

    def block(tokens: Tensor, *, run: Any = None, query: Tensor | None = None) -> Tensor:
        return linear(tokens).float().mean(dim=-1) if run is attention_row else linear(tokens)

    x = randn(2, 9, 4, dtype=torch.float32)
    with autocast(True):
        scores_of(x, [block, block], 1, ahead_by_parts=by_parts)
        linear(x).sum().backward()
    assert linear.weight.grad is not None


def test_no_gradient_flows_through_the_weights() -> None:
    x = randn(3, 17, 4).requires_grad_()
    blocks, _ = fake_blocks(2)
    selection = select(scores_of(x, blocks, 1).abs(), 6)
    assert selection.weights is not None and not selection.weights.requires_grad
    keep_and_merge(x, selection, 1)[:, -1].sum().backward()
    assert x.grad is not None
    reached = x.grad[:, 1:, 0].gather(1, selection.dropped)
    assert_exact(reached, selection.weights)


# No use of values: a meta tensor has none.


@pytest.mark.parametrize("class_query", [True, False])
@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("with_guide", [True, False])
def test_a_stage_never_uses_values(
    prefix: int, merge: bool, with_guide: bool, class_query: bool
) -> None:
    x = torch.empty(2, prefix + 9, 4, device="meta", requires_grad=True)
    guide = torch.empty(2, 4, device="meta") if with_guide else None
    blocks, _ = fake_blocks(2)
    selection = select(scores_of(x, blocks, prefix, guide, 0.2, class_query), 4)
    if not merge:
        selection = selection._replace(weights=None)
    out = keep_and_merge(x, selection, prefix)
    assert out.shape == (2, prefix + 4 + merge, 4)
    assert out.is_meta


def test_attention_row_never_uses_values() -> None:
    query, keys = torch.empty(2, 3, 1, 4, device="meta"), torch.empty(2, 3, 9, 4, device="meta")
    block = SimpleNamespace(elip_query_and_keys=lambda *_: (query, keys), elip_scale=0.5)
    assert attention_row(block, torch.empty(2, 9, 12, device="meta")).shape == (2, 9)
