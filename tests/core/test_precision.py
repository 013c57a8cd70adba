"""Numbers of decisions are float32 or wider, whatever the forward computes in."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tensors import LOW, autocast, randn
from torch import Tensor

from elip_plugin import ElipConfig, plan
from elip_plugin.core.blocks import attend, attention_row, key_uniqueness
from elip_plugin.core.context import StageContext
from elip_plugin.core.guide import guide_from_batch
from elip_plugin.core.score import text_similarity
from elip_plugin.core.select import select
from elip_plugin.core.trace import Trace
from elip_plugin.reducers import cluster, reducers
from elip_plugin.reducers.pixels import split_patches
from elip_plugin.reducers.tome import Pairs, ToMe, match, merge_inside, merge_pairs

PATCHES, DEPTH, WIDTH = 64, 12, 16


class Block:
    """Adds nothing to the tokens; queries and keys are the normalized tokens, by two heads."""

    elip_scale = None

    def __call__(self, x: Tensor, run: Any = None, **options: Any) -> Any:
        return x if run is None else run(self, x, **options)

    def elip_query_and_keys(self, query: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return heads(query), heads(x)

    def elip_attend(
        self,
        x: Tensor,
        bias: Tensor | None = None,
        factors: Tensor | None = None,
        with_query: bool = False,
    ) -> tuple[Tensor, Tensor]:
        for given in (bias, factors):
            assert given is None or (given.dtype == torch.float32 and given.isfinite().all())
        keys = heads(x)
        return torch.zeros_like(x), torch.cat([keys[:, :, :1], keys], 2) if with_query else keys

    def elip_feed_forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def elip_stochastic_depth(self, added: Tensor) -> Tensor:
        return added


def norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


def heads(x: Tensor) -> Tensor:
    return norm(x).unflatten(2, (2, -1)).transpose(1, 2)


def test_a_large_group_is_averaged_in_half_precision() -> None:
    """Its sum, 290 times 450, is above what float16 holds."""
    x = (450 + randn(1, 3, 8)).half()
    zero = torch.zeros(1, 1, dtype=torch.long)
    pairs, sizes = Pairs(zero, zero[:, :0], zero, 1), torch.tensor([[1.0, 289.0, 1.0]])
    merged, counts = merge_pairs(x, sizes, pairs)
    assert merged.dtype == torch.float16 and counts.tolist() == [[1, 290]]
    assert merged.isfinite().all()
    expected = merge_pairs(x.float(), sizes, pairs)[0]
    torch.testing.assert_close(merged.float(), expected, rtol=1e-3, atol=0)


def test_sizes_count_257_in_bfloat16() -> None:
    """In which 256 + 1 is 256."""
    block: Any = Block()
    x, sizes = torch.ones(1, 1 + 257, WIDTH, dtype=LOW), None
    while x.shape[1] > 2:
        x, sizes, *_ = merge_inside(block, x, sizes, how=ToMe(), remove=x.shape[1] // 2, prefix=1)
    assert x.dtype == LOW and sizes is not None and sizes.tolist() == [[1, 257]]


@pytest.mark.parametrize("dtype", [torch.float32, LOW])
def test_the_pairs_under_autocast_are_those_without(dtype: torch.dtype) -> None:
    keys = randn(4, 197, 64).to(dtype)
    with autocast(True):
        found = match(keys, 90)
    assert all(map(torch.equal, found[:3], match(keys.float(), 90)[:3]))


def row(x: Tensor, guide: Tensor) -> Tensor:
    block: Any = Block()
    return attention_row(block, x)


def uniqueness(x: Tensor, guide: Tensor) -> Tensor:
    block: Any = Block()
    return key_uniqueness(block, x, prefix=1)


def similarity(x: Tensor, guide: Tensor) -> Tensor:
    return text_similarity(x, norm, StageContext(1, guide, 1.0))


def by_batch(x: Tensor, guide: Tensor) -> Tensor:
    return guide_from_batch(x[:, :1], guide)


def likeness(x: Tensor, guide: Tensor) -> Tensor:
    looks = F.normalize(x, dim=2)
    return cluster.look_similar(looks, torch.arange(90).expand(2, -1)).float()


def sources(x: Tensor, guide: Tensor) -> Tensor:
    """Of a stage that merges, and of one that averages groups."""
    trace = Trace(1)
    trace.record(0, select(x[:, 1:].sum(dim=2).exp(), 90), 196)
    groups = (torch.arange(91) % 7).expand(2, -1)
    trace.record_groups(1, groups, 7)
    return torch.cat([stage.sources for stage in trace.stages], dim=1)


@pytest.mark.parametrize("scores", [row, uniqueness, similarity, by_batch, likeness, sources])
def test_scores_under_autocast_are_those_without(scores: Callable[..., Tensor]) -> None:
    x, guide = randn(2, 1 + 196, WIDTH).float(), randn(2, WIDTH, seed=1).float()
    with autocast(True):
        found = scores(x, guide)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, scores(x, guide), rtol=1e-5, atol=1e-7)


def test_the_query_among_the_keys_is_scaled_in_float32() -> None:
    q, k = randn(2, 3, 5, 12).to(LOW), randn(2, 3, 5, 12, seed=1).to(LOW)
    attention: Any = SimpleNamespace(
        elip_scale=None, elip_project=lambda x: (q, k, k), elip_project_output=lambda joined: joined
    )
    found = attend(attention, randn(2, 5, 36), with_query=True)[1]
    expected = torch.cat([q[:, :, :1].float() * 12**-0.5, k.float()], dim=2)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("biased", [False, True])
def test_attention_with_a_gradient_in_bfloat16_is_the_fused_one(
    biased: bool, scale: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [randn(2, 3, 40, 12, seed=i).to(LOW).requires_grad_() for i in range(3)]
    attention: Any = SimpleNamespace(
        elip_scale=scale, elip_project=lambda x: given, elip_project_output=lambda joined: joined
    )
    x, bias = randn(2, 40, 36), randn(2, 1, 1, 40, seed=4) if biased else None
    fused = F.scaled_dot_product_attention
    mask = None if bias is None else bias.to(LOW)
    expected = fused(*given, attn_mask=mask, scale=scale).transpose(1, 2).flatten(2)
    calls: list[int] = []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, *_, **__: calls.append(1) or q)
    found = attend(attention, x, bias)[0]
    assert not calls
    toward = randn(2, 40, 36, seed=5).to(LOW)
    for one, other in zip(
        torch.autograd.grad(found, given, toward),
        torch.autograd.grad(expected, given, toward),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.05)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
    given[0] = given[0].detach()
    attend(attention, x, bias)
    given[0] = randn(2, 3, 512, 12).to(LOW).requires_grad_()
    attend(attention, x, bias)
    assert len(calls) == 2


@pytest.mark.parametrize("planted", [slice(1, None), slice(20, 21)], ids=["all", "one"])
@pytest.mark.parametrize("name", reducers())
def test_tokens_near_the_largest_number_of_float16_stay_finite(name: str, planted: slice) -> None:
    config = ElipConfig.from_mapping({"reducer": name})
    made, reducer = plan(config, num_patches=PATCHES, depth=DEPTH), config.reducer
    x, images = randn(2, 1 + PATCHES, WIDTH).half(), randn(2, 3, 32, 32).half()
    x[:, planted, 3] = 60_000
    context = StageContext(
        1,
        randn(2, WIDTH, seed=1).half() if config.text_weight else None,
        config.text_weight,
        blocks=[Block()] * DEPTH,
        training=True,
        norm=norm,
        patches=split_patches(images, (4, 4)),
    )
    for i in sorted(reducer.blocks_run(made.stages, DEPTH)):
        x = reducer.run_block(i, x, made.by_block, context)
        assert x.dtype == torch.float16 and x.isfinite().all()
    assert x.shape[1] == made.tokens[-1]
