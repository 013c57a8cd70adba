"""Laws of a pruned LAVIS vision tower."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from conftest import recorded_lengths
from torch import Tensor

from elip_plugin import apply, find_handle
from elip_plugin.core.score import LOOK, SCORE
from elip_plugin.errors import GuideError, UnsupportedModelError

vit = pytest.importorskip("lavis.models.vit")

PLANNED = [17] * 2 + [16] * 2 + [12] * 6 + [8] * 2


def make_tower(**options: Any) -> Any:
    torch.manual_seed(0)
    return vit.VisionTransformerEncoder(img_size=64, embed_dim=32, num_heads=4, **options).train()


def mlps(tower: Any) -> list[Any]:
    """Called by main blocks only, and after what a block does to the tokens that enter it."""
    return [block.mlp for block in tower.blocks]


@pytest.fixture
def image() -> Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def guide() -> Tensor:
    return torch.randn(3, 32, generator=torch.Generator().manual_seed(2))


def test_prunes_as_planned_through_forward_features(image: Tensor, guide: Tensor) -> None:
    """`forward_features` goes round the tower's own `__call__`."""
    tower = make_tower()
    handle = apply(tower)
    with handle.guide(guide), recorded_lengths(mlps(tower)) as lengths:
        out = tower.forward_features(image)
    assert lengths == PLANNED == list(handle.plan.tokens)
    assert out.shape == (3, 8, 32)
    out.sum().backward()
    assert all(p.grad is not None for p in tower.parameters())


def test_disabled_evaluated_and_removed_equal_the_base_bitwise(
    image: Tensor, guide: Tensor
) -> None:
    base, tower = make_tower(), make_tower()
    handle = apply(tower)
    assert list(tower.state_dict()) == list(base.state_dict())
    with handle.disabled(), handle.guide(guide):
        assert torch.equal(tower(image), base(image))
    with handle.guide(guide):
        assert torch.equal(tower.eval()(image), base.eval()(image))
    keys = [sorted(vars(module)) for module in base.modules()]
    handle.remove()
    handle.remove()
    assert [sorted(vars(module)) for module in tower.modules()] == keys
    assert [type(module) for module in tower.modules()] == [type(m) for m in base.modules()]
    assert torch.equal(tower(image), base(image))


def test_looking_ahead_is_deterministic_and_equals_the_block_without_dropout(
    image: Tensor,
) -> None:
    tower = make_tower(drop_rate=0.3, attn_drop_rate=0.3, drop_path_rate=0.5)
    apply(tower)
    block = tower.blocks[11]
    x = torch.randn(3, 17, 32)
    looked = block(x, elip=LOOK)
    assert torch.equal(looked, block(x, elip=LOOK))
    torch.testing.assert_close(looked, block.eval()(x))


def test_the_reduced_block_scores_as_the_whole_block() -> None:
    tower = make_tower().double()
    apply(tower)
    block = tower.blocks[5].eval()
    x = torch.randn(3, 17, 32, dtype=torch.float64, requires_grad=True)
    block(x, register_hook=True)
    whole = block.attn.get_attention_map()[:, :, 0].mean(1)
    torch.testing.assert_close(block(x, elip=SCORE), whole, rtol=0, atol=1e-12)


def test_checkpointing_changes_nothing(image: Tensor, guide: Tensor) -> None:
    gradients = []
    for options in ({}, {"use_grad_checkpointing": True, "ckpt_layer": 12}):
        tower = make_tower(**options)
        with apply(tower).guide(guide):
            out = tower(image)
        out.square().mean().backward()  # after the guide is gone
        gradients.append([p.grad for p in tower.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_every_weight_learns_under_autocast(image: Tensor, guide: Tensor) -> None:
    tower = make_tower()
    with (
        apply(tower).guide(guide),
        recorded_lengths(mlps(tower)) as lengths,
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        tower(image).float().square().mean().backward()
    assert lengths == PLANNED
    assert all(p.grad is not None and p.grad.any() for p in tower.parameters())


def test_copies_are_independent(image: Tensor, guide: Tensor) -> None:
    tower = make_tower()
    with apply(tower).guide(guide):
        expected = tower(image)
    for copied in (copy.deepcopy(tower), pickle.loads(pickle.dumps(tower))):
        # Its blocks must look through its own blocks, not through the original's.
        assert copied.blocks[0].elip.blocks is copied.blocks
        with find_handle(copied).guide(guide):
            assert torch.equal(copied(image), expected)
        find_handle(copied).remove()
    with find_handle(tower).guide(guide):
        assert torch.equal(tower(image), expected)


def test_bad_input(image: Tensor) -> None:
    tower = make_tower()
    handle = apply(tower)
    with pytest.raises(GuideError, match=r"\(3, 31\).*\(3, 32\)"), handle.guide(torch.ones(3, 31)):
        tower(image)
    with pytest.raises(UnsupportedModelError, match="pass the model's visual_encoder"):
        apply(vit.Block(32, 4))
