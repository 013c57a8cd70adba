"""A quarter of the tokens: 2 x 2 neighbouring patches become one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from recorders import recorded_lengths
from tensors import randn
from torch import nn
from towers import KINDS, make_tower

from elip_plugin import ElipConfig, apply, plan
from elip_plugin.errors import ConfigError, PlanError
from elip_plugin.patching.patch_embedding import ElipPatchEmbedding
from elip_plugin.reducers.pool import pool, shrink, upper_left

POOL = {"reducer": "pool", "final_unpruned": 0.2, "eval_mode": "image"}


def test_neighbours_are_averaged() -> None:
    x = randn(2, 2 + 4 * 6, 3)
    out, grid = pool(x, 2, 4, 6), x[:, 2:].unflatten(1, (4, 6))
    assert out.shape == (2, 2 + 6, 3) and torch.equal(out[:, :2], x[:, :2])
    for row in range(2):
        for column in range(3):
            block = grid[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            torch.testing.assert_close(out[:, 2 + 3 * row + column], block.mean(dim=(1, 2)))


def test_the_plan_has_a_quarter_and_no_merged_token() -> None:
    config = ElipConfig.from_mapping({"reducer": "pool"})
    made = plan(config, num_patches=196, depth=12)
    assert made.tokens == (50,) * 12 and made.stages[0].keep == 49
    assert made.forward_cost(768) < 0.26
    assert ElipConfig.from_mapping(config.to_mapping()) == config


@pytest.mark.parametrize("kind", KINDS)
def test_every_host_is_pooled_at_its_input(kind: str) -> None:
    tower = make_tower(kind)
    model, images = tower.model.eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = tower.encode(model, images)
    handle = apply(model, POOL)
    (embedding,) = (m for m in model.modules() if isinstance(m, ElipPatchEmbedding))
    made: list[torch.Tensor] = []
    with torch.no_grad():
        hook = embedding.register_forward_hook(lambda module, args, out: made.append(out))
        pooled = tower.encode(model, images)
        hook.remove()
        (embedded,) = made
        with handle.disabled():
            assert torch.equal(tower.encode(model, images), before)
        half = nn.Conv2d.forward(embedding, F.avg_pool2d(images, 2))
    side = 64 // tower.patch
    assert embedded.shape[2:] == (side, side)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):  # each stands for 2 x 2 patches
        assert torch.equal(embedded[:, :, row::2, column::2], half)
    assert not torch.equal(pooled, before)
    model.train()
    handle.update_progress(0, 10)
    with recorded_lengths(tower.blocks(model), tower.dim) as lengths:
        tower.encode(model, images).sum().backward()
        handle.update_progress(8, 10)
        tower.encode(model, images)
    full = handle.plan.prefix + side**2
    first, last = lengths[:12], lengths[12:]
    assert first == list(handle.plan.tokens) and last == [full] * 12
    assert all(p.grad is not None for m in tower.blocks(model) for p in m.parameters())
    handle.remove()
    with torch.no_grad():
        assert torch.equal(tower.encode(model.eval(), images), before)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"preset": "fast"}, "one stage, at block 0"),
        ({"stages": [{"block": 0, "lookahead": 1, "keep": 0.5}]}, r"keeps 0.25 of the tokens, got"),
        ({"stages": [{"block": 0, "lookahead": 1, "keep": 16}]}, r"keeps 0.25 of the tokens, got"),
        ({"warmup": 0.2}, "warmup has no steps in between"),
        (
            {"stages": [{"block": 0, "lookahead": 1, "keep": 0.25, "until": 4}]},
            "cannot come back: leave until out",
        ),
    ],
)
def test_faults_of_a_config(mapping: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ElipConfig.from_mapping({"reducer": "pool", **mapping})


@pytest.mark.parametrize(("rows", "columns"), [(3, 3), (7, 7), (4, 6)])
def test_odd_edges_have_smaller_squares(rows: int, columns: int) -> None:
    x = randn(2, 1 + rows * columns, 3)
    out, grid = pool(x, 1, rows, columns), x[:, 1:].unflatten(1, (rows, columns))
    corner = grid[:, 2 * ((rows - 1) // 2) :, 2 * ((columns - 1) // 2) :]
    torch.testing.assert_close(out[:, -1], corner.mean(dim=(1, 2)))
    assert upper_left(2, rows, columns, x.device).shape == (2, out.shape[1] - 1)


def test_an_odd_grid_is_halved(tiny_clip: Any) -> None:
    made = plan(ElipConfig.preset("lowres"), num_patches=49, depth=12)
    assert made.tokens == (17,) * 12 and made.stages[0].keep == 16
    model = tiny_clip(image_size=24)  # 3 x 3 patches
    handle = apply(model, POOL)
    images = torch.zeros(1, 3, 24, 24)
    images[..., 16:, :] = 1  # the last row of patches
    with recorded_lengths(model.visual.transformer.resblocks) as lengths:
        model.encode_image(images)
    assert lengths == [5] * 12 == list(handle.plan.tokens)
    small = shrink(images, 2, (3, 3), (8, 8))
    assert small.shape == (1, 3, 16, 16)
    assert small[..., :8, :].mean() < 0.05 and small[..., 12:, :].mean() > 0.95


@pytest.mark.parametrize("side", [6, 7])
def test_a_checkerboard_of_single_pixels_becomes_gray(side: int) -> None:
    """As where the grid is even; of an odd one, taking some pixels would leave a pattern."""
    y = torch.arange(8 * side)
    board = ((y[:, None] + y) % 2).float().expand(1, 3, -1, -1)
    small = shrink(board, 2, (side, side), (8, 8))
    assert small.shape[2:] == (8 * ((side + 1) // 2),) * 2
    assert (small - 0.5).abs().max() < 0.02


def test_faults_of_a_grid(tiny_clip: Any) -> None:
    with pytest.raises(PlanError, match="which 51 patches do not fill"):
        plan(ElipConfig.from_mapping({"reducer": "pool"}), num_patches=51, depth=12)
    model = tiny_clip(image_size=[24, 64])  # 3 x 8 patches
    apply(model, POOL)
    with pytest.raises(PlanError, match="which a grid of 3 x 8 has not"):
        model.encode_image(torch.randn(1, 3, 24, 64))
    wide = tiny_clip(image_size=[16, 64])
    apply(wide, POOL)
    with recorded_lengths(wide.visual.transformer.resblocks) as lengths:
        wide.encode_image(torch.randn(1, 3, 16, 64))
    assert lengths == [5] * 12
