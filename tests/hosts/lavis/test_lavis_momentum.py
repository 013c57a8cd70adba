"""Momentum encoders of LAVIS' models: which tokens they see, and whose weights they run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("lavis")

from lavis.models.vit import VisionTransformerEncoder
from lavis_family import (
    ARCHS,
    BERT,
    FULL,
    MOMENTUM,
    PLANNED,
    STILL,
    is_clip,
    pruned,
    run,
    samples,
    step,
    stock,
)
from lavis_recorders import (
    assert_equal,
    assert_nothing_left,
    choices,
    seen,
    shape_of,
    text_calls,
    tower,
)

from elip_plugin import Handle, find_handle
from elip_plugin.errors import ConfigError
from elip_plugin.hosts.lavis.text import fit_mask
from elip_plugin.patching.install import find_pruner

BOTH = {"preset": "paper", "prune_momentum": True}
CHECKPOINTED = {"vit_grad_ckpt": True, "vit_ckpt_layer": 12}

each_momentum = pytest.mark.parametrize("arch", MOMENTUM)


@each_momentum
def test_the_momentum_encoder_sees_all_tokens_by_default(arch: str) -> None:
    model = pruned(arch)
    with seen(model) as online, seen(model, "_m") as momentum:
        output, _ = step(arch, model)
    assert (online, momentum) == (PLANNED, FULL)
    assert output["/loss"].isfinite()
    # As in LAVIS: the same image through the same tower, one step of momentum later.
    base = stock(arch)
    run(arch, base)
    with torch.no_grad():
        image = samples()["image"]
        assert torch.equal(model.visual_encoder_m(image), base.visual_encoder_m(image))


@each_momentum
def test_it_is_pruned_on_request_and_guided_by_its_own_text(arch: str) -> None:
    model = pruned(arch, elip=BOTH)
    with seen(model) as online, seen(model, "_m") as momentum, text_calls(model, "_m") as calls:
        output, gradients = step(arch, model)
    assert (online, momentum) == (PLANNED, PLANNED)
    assert calls.count("text") == 1
    assert output["/loss"].isfinite()
    assert not any("_m." in name for name in gradients)
    assert_nothing_left(model)

    def kept() -> list[Any]:
        with choices() as chosen:
            run(arch, model)
        # Three stages of each tower: where the momentum encoder has its turn is up to LAVIS.
        assert len(chosen) == 6
        return chosen

    before = kept()
    text_encoder = model.text_encoder_m
    bert = getattr(text_encoder, "bert", text_encoder)
    with torch.no_grad():
        for parameter in bert.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    after = kept()
    assert all(torch.equal(a, b) for a, b in zip(before[:3], after[:3]))  # those of the other tower
    assert any(not torch.equal(a, b) for a, b in zip(before[3:], after[3:]))


def test_it_has_its_own_guide_beside_a_users() -> None:
    model = pruned("albef_retrieval", elip=BOTH)
    with (
        find_handle(model).guide(torch.randn(4, 32)),
        seen(model, "_m") as momentum,
        text_calls(model) as calls,
        text_calls(model, "_m") as own,
    ):
        step("albef_retrieval", model)
    assert momentum == PLANNED
    assert calls.count("text") == own.count("text") == 1
    assert_nothing_left(model)


@each_momentum
def test_both_are_undone(arch: str) -> None:
    model, base = pruned(arch, elip=BOTH), stock(arch)
    handle = find_handle(model)
    with handle.disabled(), seen(model) as online, seen(model, "_m") as momentum:
        ours = step(arch, model)
    assert (online, momentum) == (FULL, FULL)
    theirs = step(arch, base)
    assert_equal(ours[0], theirs[0])
    assert_equal(ours[1], theirs[1])
    handle.remove()
    assert shape_of(model) == shape_of(base)


@pytest.mark.parametrize("arch", sorted(set(ARCHS) - set(MOMENTUM)))
def test_pruning_a_momentum_encoder_that_is_not_there_is_refused(arch: str) -> None:
    text_weight = {"text_weight": 0.0} if arch == "blip_caption" else {}
    with pytest.raises(ConfigError, match="has none here"):
        pruned(arch, elip={**BOTH, **text_weight})


@pytest.mark.parametrize("arch", ["albef_vqa", "albef_nlvr", "albef_classification"])
def test_pruning_one_that_is_switched_off_is_refused(arch: str) -> None:
    with pytest.raises(ConfigError, match="has none here"):
        pruned(arch, use_distill=False, elip=BOTH)


def test_one_stage_is_enough_for_the_masks_to_differ() -> None:
    """Any plan makes a tower's tokens fewer than LAVIS' mask for the momentum encoder has."""
    config = {"stages": [{"block": 3, "lookahead": 1, "keep": 5}], "merge": False}
    for arch in ("albef_pretrain", "albef_nlvr"):
        model = pruned(arch, elip=config)
        with seen(model) as online, seen(model, "_m") as momentum:
            output, _ = step(arch, model)
        assert (online, momentum) == ([17] * 3 + [6] * 9, FULL)
        assert output["/loss"].isfinite()


@pytest.mark.parametrize("arch", ["albef_pretrain", "albef_nlvr"])
def test_the_momentum_encoders_mask_is_the_one_lavis_would_make_for_its_tokens(arch: str) -> None:
    """LAVIS pairs the momentum encoder's tokens with the mask it made for the other tower's."""
    model = pruned(arch)
    encoder = model.text_encoder_m if arch == "albef_pretrain" else model.text_encoder
    bert, pairs = getattr(encoder, "bert", encoder), []

    def record(module: Any, args: Any, options: Any) -> None:
        states, masks = (options.get(f"encoder_{n}") for n in ("hidden_states", "attention_mask"))
        if states is not None:
            states, masks = (v if isinstance(v, list) else [v] for v in (states, masks))
            pairs.extend((s.shape[1], m) for s, m in zip(states, masks))

    bert.encoder.register_forward_pre_hook(record, with_kwargs=True)
    run(arch, model)
    assert any(tokens == 17 for tokens, _ in pairs)
    for tokens, mask in pairs:
        assert mask.shape[-1] == tokens and not mask.any()  # inverted: zero leaves nothing out


def test_a_mask_that_leaves_images_out_keeps_leaving_them_out() -> None:
    states = torch.zeros(3, 17, 32)
    mask = torch.tensor([1, 0, 1]).unsqueeze(1).repeat(1, 8)
    assert torch.equal(fit_mask(mask, states), mask[:, :1].repeat(1, 17))
    fitting = torch.randint(0, 2, (3, 17))
    assert fit_mask(fitting, states) is fitting


VITS = [arch for arch in ARCHS if not is_clip(arch) and not arch.endswith("_extractor")]


@pytest.mark.parametrize("arch", [*VITS, "albef_pretrain:default"])
def test_checkpointing_changes_nothing(arch: str) -> None:
    """With both towers pruned, where there are two."""
    arch, _, default = arch.partition(":")
    config = BOTH if arch in MOMENTUM and not default else None
    plain, saving = pruned(arch, elip=config), pruned(arch, elip=config, **CHECKPOINTED)
    for planned in (PLANNED, FULL):
        with seen(saving) as lengths:
            ours = step(arch, saving)
        assert lengths[:12] == planned
        for got, wanted in zip(ours, step(arch, plain)):
            assert list(got) == list(wanted)
            torch.testing.assert_close(got, wanted)
        for model in (plain, saving):
            Handle(model).remove()


def test_checkpointing_wraps_the_last_blocks_that_lavis_would_wrap() -> None:
    model = pruned("blip_vqa", vit_grad_ckpt=True, vit_ckpt_layer=4)
    wrapped = [
        ["forward" in vars(part) for part in (block.attn, block.mlp)]
        for block in model.visual_encoder.blocks
    ]
    assert wrapped == [[False, False]] * 8 + [[True, True]] * 4


@pytest.mark.parametrize("arch", ["albef_retrieval", "albef_nlvr"])
def test_a_tower_of_lavis_sizes_is_checkpointed_after_its_copy_is_made(
    arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same where LAVIS builds the tower: here its builder makes a narrow one."""

    def build(cls: Any, cfg: Any, from_pretrained: bool = False) -> Any:
        options = {"use_grad_checkpointing": cfg.vit_grad_ckpt, "ckpt_layer": cfg.vit_ckpt_layer}
        made = cls(img_size=64, embed_dim=32, depth=12, num_heads=2, **options)
        made.vision_width = 32
        return made

    monkeypatch.setattr(VisionTransformerEncoder, "from_config", classmethod(build))
    sizes = {"vit": None, "bert": {**BERT, **STILL, "encoder_width": 32}, **CHECKPOINTED}
    image, changed = samples()["image"], []
    for model in (pruned(arch, **sizes), stock(arch, **sizes)):
        assert "forward" in vars(model.visual_encoder.blocks[0].attn)
        with torch.no_grad():
            before = model.visual_encoder_m(image)
            for parameter in model.visual_encoder.parameters():
                parameter.zero_()
            changed.append(not torch.equal(model.visual_encoder_m(image), before))
    assert changed == [False, True]  # ours, and LAVIS' own


@pytest.mark.parametrize("config", [None, BOTH], ids=["one", "both"])
@each_momentum
def test_a_checkpointed_momentum_encoder_runs_its_own_weights(arch: str, config: Any) -> None:
    """LAVIS copies the wrapped tower, and the copies' wrappers run that tower's weights."""
    model = pruned(arch, elip=config, **CHECKPOINTED)
    image = samples()["image"]
    guide = torch.randn(4, 32, generator=torch.Generator().manual_seed(3))

    def encoded() -> Any:
        vision = tower(model, "_m")
        with torch.no_grad():
            if config is None:
                return vision(image)
            with find_pruner(vision).asked(guide=guide):
                return vision(image)

    before = encoded()
    assert before.shape[1] == (8 if config else 17)
    with torch.no_grad():
        for parameter in tower(model).parameters():
            parameter.zero_()
    assert torch.equal(encoded(), before)
    with torch.no_grad():
        for parameter in tower(model, "_m").parameters():
            parameter.zero_()
    assert not torch.equal(encoded(), before)
