"""Rotary positions: tables follow the tokens that stay; blocks are their own forwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hosts.anyvit.vits import PATCHES, SIDE, images, make, timm_vit
from torch import Tensor

import elip_plugin
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.hosts.anyvit.check import check
from elip_plugin.hosts.registry import describe
from elip_plugin.patching.rotary import Rotary

HALF = [0.06, 0.3333884, 0.0326136, 0.2452822]
EMBED = [0.06, 0.3327811, 0.0325889, 0.2466614]
"""Of DINOv3 with `waves` for weights and image; unpruned 0.06, 0.3317472, 0.0325544, 0.2469978."""

STAGES = [{"block": 1, "lookahead": 1, "keep": 0.5}, {"block": 4, "lookahead": 1, "keep": 0.25}]


def timm_rotary(name: str) -> Any:
    torch.manual_seed(0)
    try:
        model = timm_vit(name)
    except RuntimeError as error:  # of an older timm
        pytest.skip(str(error))
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.1 if weight.ndim > 1 else 0.5)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "rotary"),
    [
        ("DINOv3", Rotary("position_embeddings", packed=False, halves=True)),
        ("vit_small_patch16_dinov3", Rotary("rope", packed=True, halves=True)),
        ("eva02_base_patch14_224", Rotary("rope", packed=True, halves=False)),
    ],
)
def test_a_rotated_block_is_its_own_forward(name: str, rotary: Rotary) -> None:
    model = make(name) if name == "DINOv3" else timm_rotary(name)
    tower = describe(model).tower
    assert {parts.rotary for parts in tower.parts.values()} == {rotary}
    assert check(tower) < 1e-10
    handle = elip_plugin.apply(model.eval(), {"preset": "half", "eval_mode": "image"})
    with torch.no_grad():
        pruned = model(images())
        with handle.disabled():
            full = model(images())
        handle.remove()
        again = model(images())
    if name == "DINOv3":
        pruned, full, again = (each.pooler_output for each in (pruned, full, again))
    assert torch.equal(full, again) and (pruned - full).abs().max() > 1e-4


@pytest.mark.parametrize("merges", [False, True])
def test_positions_follow_the_tokens(merges: bool) -> None:
    """Each block is given the rows of the patches that are left, of each image its own."""
    model = make("DINOv3").double().eval()
    reducer = {"preset": "embed"} if merges else {"reducer": "random", "stages": STAGES}
    handle = elip_plugin.apply(model, {**reducer, "eval_mode": "image"})
    tables, seen = model.rope_embeddings(images().double()), []

    def note(block: Any, args: Any, options: Any, out: Any) -> None:
        seen.append((args[0], options["position_embeddings"], out))

    for block in model.model.layer:
        block.register_forward_hook(note, with_kwargs=True)
    with handle.trace() as trace, torch.no_grad():
        found = model(images().double()).pooler_output
    assert len(seen) == 12 and [x.shape[1] for x, *_ in seen] == list(handle.plan.tokens)
    stages = {stage.block: stage for stage in trace.stages}
    place, sources = torch.arange(PATCHES).expand(2, -1), torch.eye(PATCHES).expand(2, -1, -1)
    for i, (x, (cos, sin), out) in enumerate(seen):
        if i in stages:
            sources = stages[i].sources
            # A token that others went into has the place of one of them, which is its own.
            rows = (cos[:, 0, :, None] == tables[0]).all(-1) & (
                sin[:, 0, :, None] == tables[1]
            ).all(-1)
            assert (rows.sum(-1) == 1).all() and (rows & (sources > 0)).any(-1).all(), i
            place = rows.int().argmax(-1) if merges else stages[i].kept
        for table, given in zip(tables, (cos, sin), strict=True):
            expected = table[place].unsqueeze(1)
            assert torch.equal(given.expand_as(expected), expected), i
        sizes = torch.cat([torch.ones(2, 5), (sources > 0).sum(-1)], dim=1)
        if not merges or i == 11:  # other blocks merge inside
            out = out[0] if merges else out
            resultants = seen[i - 1][2][2] if merges else torch.ones_like(sizes)
            expected = by_hand(model.model.layer[i], x, cos, sin, sizes.double(), resultants)
            torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    assert not torch.equal(place[0], place[1])
    if not merges:
        with torch.no_grad():
            assert torch.equal(found, model.norm(seen[-1][2])[:, 0])


def by_hand(
    block: Any, x: Tensor, cos: Tensor, sin: Tensor, sizes: Tensor, resultants: Tensor
) -> Tensor:
    """Compute a block with each head's pairs of numbers turned as complex ones."""
    attention, prefix = block.attention, x.shape[1] - cos.shape[-2]
    y = block.norm1(x)
    q, k, v = (
        getattr(attention, f"{name}_proj")(y).unflatten(-1, (2, -1)).transpose(1, 2)
        for name in "qkv"
    )
    turn = torch.complex(cos, sin).chunk(2, dim=-1)[0]
    made = []
    for each in (q, k):
        first, second = each[:, :, prefix:].chunk(2, dim=-1)
        turned = torch.complex(first, second) * turn
        made.append(
            torch.cat([each[:, :, :prefix], torch.cat([turned.real, turned.imag], -1)], dim=2)
        )
    logits = made[0] @ made[1].transpose(2, 3) * q.shape[-1] ** -0.5
    weights = (logits + sizes.log()[:, None, None]).softmax(dim=-1)
    v = v * resultants.sqrt()[:, None, :, None]
    joined = (weights @ v).transpose(1, 2).flatten(2)
    x = x + block.layer_scale1(attention.o_proj(joined))
    return x + block.layer_scale2(block.mlp(block.norm2(x)))


def test_tables_of_each_block_are_refused() -> None:
    model = timm_rotary("vit_small_patch16_rope_mixed_224")
    with pytest.raises(UnsupportedModelError, match="positions"):
        elip_plugin.apply(model, "embed")


def test_other_sizes_have_their_own_tables() -> None:
    model = make("DINOv3").eval()
    handle = elip_plugin.apply(model, "embed", image_size=SIDE // 2)
    assert handle.plan.tokens[0] == 5 + PATCHES // 4
    for side in (SIDE // 2, SIDE):
        x = torch.randn(2, 3, side, side)
        with torch.no_grad(), handle.trace() as trace:
            assert model(x).pooler_output.isfinite().all()
        assert trace.stages[0].kept.max() > (side // 8) ** 2 // 2


def waves(*shape: int) -> Tensor:
    """Numbers that no generator of random ones has a part in."""
    count = torch.Size(shape).numel()
    return torch.sin(torch.arange(count, dtype=torch.float64) * 1.7).reshape(shape)


@pytest.mark.parametrize(("plan", "known"), [("half", HALF), ("embed", EMBED)])
def test_known_answers(plan: str, known: list[float]) -> None:
    model = make("DINOv3").double().eval()
    with torch.no_grad():
        for i, (_, weight) in enumerate(sorted(model.named_parameters())):
            weight.copy_(waves(*weight.shape) * 0.2 + 0.01 * (i % 7))
    elip_plugin.apply(model, {"preset": plan, "eval_mode": "image"})
    with torch.no_grad():
        found = model(waves(1, 3, SIDE, SIDE)).pooler_output[0, :4]
    torch.testing.assert_close(found, torch.tensor(known).double(), rtol=5e-6, atol=1e-7)
