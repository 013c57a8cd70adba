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
from elip_plugin.core.blocks import attention_row, look_ahead
from elip_plugin.errors import GuideError, UnsupportedModelError
from elip_plugin.patching.install import find_pruner

vit = pytest.importorskip("lavis.models.vit")


PLANNED = [17] * 2 + [16] * 2 + [12] * 6 + [8] * 2
CHECKPOINTED = {"use_grad_checkpointing": True, "ckpt_layer": 12}


def make_tower(**options: Any) -> Any:
    torch.manual_seed(0)
    return vit.VisionTransformerEncoder(img_size=64, embed_dim=32, num_heads=4, **options).train()


@pytest.fixture
def image() -> Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def guide() -> Tensor:
    return torch.randn(3, 32, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("reducer", ["elip", "evit", "tome", "random"])
def test_prunes_as_planned_through_forward_features(
    reducer: str, image: Tensor, guide: Tensor
) -> None:
    """`forward_features` does not go through the tower's own `__call__`."""
    tower = make_tower()
    handle = apply(tower, {"reducer": reducer})
    with handle.guide(guide), recorded_lengths(tower.blocks) as lengths:
        out = tower.forward_features(image)
    assert lengths == list(handle.plan.tokens)
    assert reducer == "tome" or lengths == PLANNED
    assert out.shape == (3, lengths[-1], 32)
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in tower.parameters())


@pytest.mark.parametrize("reducer", ["elip", "tome"])
def test_disabled_evaluated_and_removed_equal_the_base_bitwise(
    reducer: str, image: Tensor, guide: Tensor
) -> None:
    base, tower = make_tower(), make_tower()
    handle = apply(tower, {"reducer": reducer})
    assert list(tower.state_dict()) == list(base.state_dict())
    with handle.guide(guide):
        tower(image)  # what a pruned forward switched on must not stay on
        with handle.disabled():
            assert torch.equal(tower(image), base(image))
        assert torch.equal(tower.eval()(image), base.eval()(image))
    keys = [sorted(vars(module)) for module in base.modules()]
    handle.remove()
    handle.remove()
    assert [sorted(vars(module)) for module in tower.modules()] == keys
    assert [type(module) for module in tower.modules()] == [type(m) for m in base.modules()]
    assert torch.equal(tower(image), base(image))


def test_all_blocks_are_patched_whatever_the_reducer() -> None:
    """Their attention is fused in pruned forwards."""
    for reducer in ("elip", "evit", "random", "tome"):
        tower = make_tower()
        apply(tower, {"reducer": reducer})
        assert not any(type(block) is vit.Block for block in tower.blocks), reducer


def test_looking_ahead_is_deterministic_and_equals_the_block_in_evaluation(
    image: Tensor, guide: Tensor
) -> None:
    tower = make_tower(drop_path_rate=0.5)
    handle = apply(tower, "paper")
    block = tower.blocks[11]
    x = torch.randn(3, 17, 32)
    ahead = block(x, run=look_ahead)
    assert torch.equal(ahead, block(x, run=look_ahead))
    torch.testing.assert_close(ahead, block.eval()(x))
    # From block 0 on nothing random has happened before the stage.
    handle.remove()
    handle = apply(tower.train(), {"stages": [{"block": 0, "lookahead": 12, "keep": 5}]})
    kept = []
    for _ in range(2):
        with handle.guide(guide), torch.no_grad(), handle.trace() as trace:
            tower(image)
        kept.append(trace.stages[0].kept)
    assert torch.equal(*kept)


def test_the_plan_is_shown_where_the_tower_is_printed() -> None:
    tower = make_tower()
    unpruned = repr(tower)
    handle = apply(tower, "paper")
    assert f"elip: {handle.plan.summary()}" in repr(tower)
    handle.remove()
    assert repr(tower) == unpruned


@pytest.mark.parametrize("dropout", ["drop_rate", "attn_drop_rate"])
def test_dropout_in_blocks_is_refused(dropout: str) -> None:
    tower = make_tower(**{dropout: 0.3})
    with pytest.raises(UnsupportedModelError, match="with dropout"):
        apply(tower, "paper")
    assert type(tower) is vit.VisionTransformerEncoder and type(tower.blocks[0]) is vit.Block


def test_the_attention_row_is_that_of_the_whole_block() -> None:
    tower = make_tower().double()
    apply(tower, "paper")
    block = tower.blocks[9].eval()
    x = torch.randn(3, 17, 32, dtype=torch.float64, requires_grad=True)
    block(x, register_hook=True)
    whole = block.attn.get_attention_map()[:, :, 0].mean(1)
    torch.testing.assert_close(block(x, run=attention_row), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("wanted", [1, 2, 4, 9, 10, 11])
def test_an_attention_map_is_kept_where_lavis_wants_it(
    wanted: int, image: Tensor, guide: Tensor
) -> None:
    """Before blocks 2, 4 and 10 tokens are pruned; 9 and 11 are looked through last."""
    tower = make_tower()
    with apply(tower, "paper").guide(guide):
        expected = tower(image)
        assert all(block.attn.attention_map is None for block in tower.blocks)
        torch.testing.assert_close(tower(image, register_blk=wanted), expected)
    kept = [i for i, block in enumerate(tower.blocks) if block.attn.attention_map is not None]
    assert kept == [wanted]
    size = PLANNED[wanted]
    assert tower.blocks[wanted].attn.get_attention_map().shape == (3, 4, size, size)


@pytest.mark.parametrize("reducer", ["elip", "tome"])
def test_checkpointing_changes_nothing(reducer: str, image: Tensor, guide: Tensor) -> None:
    gradients = []
    for options in ({}, CHECKPOINTED):
        tower = make_tower(**options)
        with apply(tower, {"reducer": reducer}).guide(guide):
            out = tower(image)
        out.square().mean().backward()  # after the guide is gone
        gradients.append([p.grad for p in tower.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_every_weight_learns_under_autocast(image: Tensor, guide: Tensor) -> None:
    for reducer in ("elip", "tome"):
        tower = make_tower()
        with (
            apply(tower, {"reducer": reducer}).guide(guide),
            torch.autocast("cpu", dtype=torch.bfloat16),
        ):
            tower(image).float().square().mean().backward()
        assert all(p.grad is not None and p.grad.any() for p in tower.parameters()), reducer


def test_copies_are_independent(image: Tensor, guide: Tensor) -> None:
    tower = make_tower()
    with apply(tower, "paper").guide(guide):
        expected = tower(image)
    copies = [copy.deepcopy(tower), pickle.loads(pickle.dumps(tower))]
    for copied in copies:
        assert find_pruner(copied) is not find_pruner(tower)
        with find_handle(copied).guide(guide):
            assert torch.equal(copied(image), expected)
        with torch.no_grad():
            for parameter in copied.parameters():
                parameter.zero_()
        find_handle(copied).remove()
    with find_handle(tower).guide(guide):
        assert torch.equal(tower(image), expected)


def test_bad_input(image: Tensor) -> None:
    tower = make_tower()
    handle = apply(tower, "paper")
    with pytest.raises(GuideError, match=r"\(3, 31\).*\(3, 32\)"), handle.guide(torch.ones(3, 31)):
        tower(image)
    with pytest.raises(UnsupportedModelError, match="of a model pass visual_encoder"):
        apply(vit.Block(32, 4))
