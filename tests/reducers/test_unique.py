"""Keeping what is least like the rest, by the keys of the stage's block."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from recorders import recorded_lengths
from tensors import LOW, autocast, randn
from towers import KINDS, make_tower

from elip_plugin import apply
from elip_plugin.core.blocks import key_uniqueness
from elip_plugin.measure.counts import count_flops
from elip_plugin.reducers.unique import HEAD_WIDTH


class Keys:
    """A block whose keys are given, by two heads of which the mean counts."""

    elip_scale = None

    def __init__(self, keys: torch.Tensor) -> None:
        self.keys = keys

    def elip_query_and_keys(self, query: Any, x: Any) -> tuple[torch.Tensor, torch.Tensor]:
        apart = torch.ones_like(self.keys)
        return query, torch.stack([self.keys - apart, self.keys + apart], dim=1)


def uniqueness(keys: torch.Tensor, prefix: int = 1) -> torch.Tensor:
    x = torch.zeros(*keys.shape[:2], 4)
    return key_uniqueness(Keys(keys), x, prefix=prefix)  # type: ignore[arg-type]


def test_alike_tokens_share_one_and_a_lone_one_has_it_alone() -> None:
    # Mean-free keys: three times (1, 0), once (-3, 0): of the three, each is like three.
    row = torch.tensor([[9.0, 9.0], [5.0, 2.0], [5.0, 2.0], [1.0, 2.0], [5.0, 2.0]])
    expected = torch.tensor([[0.0, 1 / 3, 1 / 3, 1.0, 1 / 3]])
    torch.testing.assert_close(uniqueness(row[None].double()), expected.double())
    assert torch.equal(uniqueness(torch.ones(1, 4, 2)), torch.tensor([[0.0, 1.0, 1.0, 1.0]]))


def test_it_equals_a_sum_over_pairs_and_follows_a_permutation() -> None:
    keys = randn(2, 9, 5)
    given = uniqueness(keys, prefix=2)
    for b in range(2):
        rest = keys[b, 2:] - keys[b, 2:].mean(dim=0)
        sums = [
            sum(max(0.0, float(F.cosine_similarity(one, two, dim=0))) for two in rest)
            for one in rest
        ]
        torch.testing.assert_close(given[b, 2:], 1 / torch.tensor(sums, dtype=torch.float64))
    order = torch.tensor([0, 1, 5, 2, 8, 6, 3, 7, 4])
    torch.testing.assert_close(uniqueness(keys[:, order], prefix=2), given[:, order])


@pytest.mark.parametrize("in_autocast", [False, True])
@pytest.mark.parametrize(
    ("dtype", "wide"),
    [(LOW, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_it_is_computed_in_float32_or_wider(
    dtype: torch.dtype, wide: torch.dtype, in_autocast: bool
) -> None:
    keys = (8 * randn(2, 50, 16)).round().to(dtype)  # exact, also as the mean of two heads
    with autocast(in_autocast):
        given = uniqueness(keys)
    assert given.dtype == wide
    exact = uniqueness(keys.double())
    assert (given.double() - exact).abs().max() < (1e-14 if wide == torch.float64 else 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_every_host_keeps_the_unique_ones_and_merges_by_the_inverse(kind: str) -> None:
    tower = make_tower(kind)
    model, images = tower.model.eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = tower.encode(model, images)
    given = {"stages": [{"block": 3, "lookahead": 1, "keep": 0.5}], "eval_mode": "image"}
    handle = apply(model, {**given, "reducer": "unique"})
    (stage,) = handle.plan.stages
    entered = []
    block, prefix = tower.blocks(model)[2], handle.plan.prefix
    hook = block.register_forward_hook(
        lambda module, args, out: entered.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad(), handle.trace() as trace:
        pruned = tower.encode(model, images)
        assert torch.equal(tower.encode(model, images), pruned)  # nothing is drawn
    hook.remove()
    x = entered[0].movedim(tower.dim, 1)
    with torch.no_grad():
        mode = functools.partial(key_uniqueness, prefix=prefix)
        scores = tower.blocks(model)[3](x, run=mode)[:, prefix:]
    assert scores.max() > 1.2 * scores.min()
    best = scores.topk(stage.keep, dim=1)
    assert torch.equal(trace.stages[0].kept, best.indices.sort(dim=1).values)
    gone = scores.scatter(1, best.indices, 0)
    weights = trace.stages[0].merge_weights
    assert weights is not None
    torch.testing.assert_close(weights, gone / gone.sum(1, keepdim=True), rtol=1e-4, atol=1e-5)
    model.train()
    with recorded_lengths(tower.blocks(model), tower.dim) as lengths:
        tower.encode(model, images).sum().backward()
    assert lengths == list(handle.plan.tokens)
    assert all(p.grad is not None for m in tower.blocks(model) for p in m.parameters())
    handle.remove()
    with torch.no_grad():
        assert torch.equal(tower.encode(model.eval(), images), before)


def test_what_choosing_costs_is_counted(tiny_clip: Any) -> None:
    """Beside EViT, which has the same plan and compares one query with the keys."""
    images, counted, planned = torch.randn(2, 3, 64, 64), [], []
    full = count_flops(lambda: wide(tiny_clip).encode_image(images))
    for reducer in ("unique", "evit"):
        model = wide(tiny_clip)
        handle = apply(model, {"reducer": reducer, "eval_mode": "image"})
        counted.append(count_flops(lambda model=model: model.encode_image(images)) / full)
        planned.append(handle.plan.forward_cost(HEAD_WIDTH))
        assert counted[-1] == pytest.approx(planned[-1], rel=0.01)  # all but norms and embedding
    # The class token has no part in what is counted for it.
    assert counted[0] - counted[1] == pytest.approx(planned[0] - planned[1], rel=0.05)


def wide(tiny_clip: Any) -> Any:
    """A tower of one head as wide as those that are counted."""
    return tiny_clip(width=HEAD_WIDTH, head_width=HEAD_WIDTH).eval()
