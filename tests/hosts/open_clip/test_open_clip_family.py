"""Every model that OpenCLIP can prune by name, and the laws for each kind of tower."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from recorders import recorded_choices, recorded_lengths, replayed_choices

import elip_plugin
from elip_plugin.core.blocks import look_ahead
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.reducers.tome import ToMe, merge_inside

open_clip = pytest.importorskip("open_clip")

from family import TIMM, build, inputs, stack_of  # noqa: E402

from elip_plugin.hosts.open_clip.names import PREFIXES, base_of  # noqa: E402
from elip_plugin.hosts.open_clip.support import why_not  # noqa: E402

OWN = {path.stem for path in (Path(open_clip.__file__).parent / "model_configs").glob("*.json")}
LISTED = [
    f"elip-{name}"
    for name in open_clip.list_models()
    if name in OWN and not why_not(open_clip.get_model_config(name))
]

CLIP = {"embed_dim": 32, "vision_cfg": {"layers": 6, "patch_size": 16, "image_size": 96}}
KINDS: dict[str, dict[str, Any]] = {
    "class token": {},
    "average pooling": {"pool_type": "avg", "no_ln_pre": True, "final_ln_after_pool": True},
    "attentional pooling": {"attentional_pool": True, "output_tokens": True},
    "CoCa, class token": {"output_tokens": True},
    "SigLIP": {"timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map",
               "timm_proj": "none"},
    "timm average": {"timm_model_name": "vit_medium_patch16_gap_256", "timm_pool": "",
                     "timm_proj": "linear"},
    "timm token": {"timm_model_name": "vit_small_patch16_224", "timm_pool": "token",
                   "timm_proj": None},
    "timm registers": {"timm_model_name": "vit_small_patch14_reg4_dinov2", "timm_pool": "token",
                       "timm_proj": "linear"},
    "EVA01": {"timm_model_name": "eva_giant_patch14_224", "timm_pool": "token", "timm_proj": None},
    "EVA02": {"timm_model_name": "eva02_base_patch16_clip_224", "timm_pool": "token",
              "timm_proj": None},
    "PE-Core": {"timm_model_name": "vit_pe_core_tiny_patch16_384", "timm_pool": "map",
                "timm_proj": None},
}  # fmt: skip
TIMM_SIZE = 112  # for patches of 14 and 16
needs_timm = pytest.mark.skipif(not TIMM, reason="this environment's timm is too old for OpenCLIP")


def config_of(kind: str) -> dict[str, Any]:
    vision = KINDS[kind]
    if "timm_model_name" in vision:
        if not TIMM:
            pytest.skip("this environment's timm is too old for OpenCLIP")
        return {"embed_dim": 32, "vision_cfg": {**vision, "image_size": TIMM_SIZE}, "text_cfg": {}}
    config = {**CLIP, "vision_cfg": {**CLIP["vision_cfg"], **vision}, "text_cfg": {}}
    if vision.get("output_tokens"):
        config["multimodal_cfg"] = {}
    return config


def make(kind: str, elip: Any = None, seed: int = 0) -> Any:
    """A small model of this kind, pruned if there is a section."""
    config = config_of(kind)
    timm = "timm_model_name" in config["vision_cfg"]
    options = {"img_size": TIMM_SIZE, "depth": 6} if timm else {}
    return build(config if elip is None else {**config, "elip": elip}, seed, **options)


def features(model: Any, *pair: torch.Tensor) -> torch.Tensor:
    return model(*pair)["image_features"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def assert_learns(model: Any, loss: torch.Tensor) -> None:
    loss.backward()
    for block in stack_of(model):
        for name, parameter in block.named_parameters():
            assert (parameter.grad is not None and parameter.grad.any()) or "bias" in name, name


def test_prunes_as_planned_and_learns(kind: str) -> None:
    model = make(kind, "paper")
    pair = inputs(model)
    plan = elip_plugin.find_handle(model).plan
    with recorded_lengths(stack_of(model)) as lengths:
        out = model(*pair)
    assert lengths == list(plan.tokens) and plan.removed > 0.2
    assert_learns(model, out["image_features"].square().mean())


def test_disabled_evaluated_unguided_and_removed_equal_the_base_bitwise(kind: str) -> None:
    base, model = make(kind), make(kind, "fast")
    pair = inputs(base)
    handle = elip_plugin.find_handle(model)
    pruned, full = features(model, *pair), features(base, *pair)
    assert not torch.allclose(pruned, full)
    with handle.disabled():
        assert torch.equal(features(model, *pair), full)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(model.encode_image(pair[0]), base.encode_image(pair[0]))
    assert torch.equal(features(model.eval(), *pair), features(base.eval(), *pair))
    handle.remove()
    assert [type(m) for m in model.modules()] == [type(m) for m in base.modules()]
    assert [sorted(vars(m)) for m in model.modules()] == [sorted(vars(m)) for m in base.modules()]
    assert torch.equal(features(model.train(), *pair), features(base.train(), *pair))


def test_state_dicts_exchange_strictly_and_copies_are_independent(kind: str) -> None:
    base, model = make(kind, seed=0), make(kind, "fast", seed=1)
    assert list(base.state_dict()) == list(model.state_dict())
    model.load_state_dict(base.state_dict(), strict=True)
    base.load_state_dict(model.state_dict(), strict=True)
    pair = inputs(base)
    assert torch.equal(features(model.eval(), *pair), features(base.eval(), *pair))
    expected = features(model.train(), *pair)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(features(copied, *pair), expected)
        elip_plugin.find_handle(copied).remove()
    assert torch.equal(features(model, *pair), expected)


def test_captions_change_the_image_through_the_selection_alone(
    kind: str,
) -> None:
    model = make(kind, {"preset": "fast", "text_weight": 1.0})
    calls = []
    blocks = (model.text if hasattr(model, "text") else model).transformer.resblocks
    blocks[0].register_forward_hook(lambda *_: calls.append(1))
    image, text = inputs(model)
    image = image[:1].expand(2, -1, -1, -1)  # one picture, two captions
    with recorded_choices() as made:
        one, two = features(model, image, text)
    assert len(calls) == 1  # the text is encoded once
    assert any(not torch.equal(stage.kept[0], stage.kept[1]) for stage in made)
    assert not torch.allclose(one, two)
    # With the choices of that forward replayed, other captions give the same image features.
    with replayed_choices(made):
        assert torch.equal(features(model, image, text.flip(0)), torch.stack([one, two]))


def gradients(model: Any, pair: tuple[torch.Tensor, torch.Tensor], checkpointing: bool) -> Any:
    model.zero_grad()
    model.visual.set_grad_checkpointing(checkpointing)
    torch.manual_seed(5)  # for what is drawn
    features(model, *pair).square().sum().backward()
    return {n: p.grad.clone() for n, p in model.visual.named_parameters() if p.grad is not None}


def test_checkpointing_changes_nothing(kind: str) -> None:
    model = make(kind, "fast")
    pair = inputs(model)
    plain = gradients(model, pair, False)
    torch.testing.assert_close(gradients(model, pair, True), plain)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["average pooling", "CoCa, class token", "SigLIP"])
def test_compiles_to_one_graph(kind: str) -> None:
    model = make(kind, "fast")
    pair = inputs(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(features(compiled, *pair), features(model, *pair))


def test_image_only_evaluation(kind: str) -> None:
    model = make(kind, {"preset": "fast", "eval_mode": "image"}).eval()
    with recorded_lengths(stack_of(model)) as lengths, torch.no_grad():
        model.encode_image(inputs(model)[0])
    assert lengths == list(elip_plugin.find_handle(model).plan.tokens)


@pytest.mark.parametrize("reducer", ["evit", "random", "tome"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_methods_to_compare_with_work_on_every_tower(kind: str, reducer: str) -> None:
    """As many token-layers gone as planned, no text read, and the unpruned model intact."""
    base = make(kind)
    model = make(kind, {"reducer": reducer, "eval_mode": "image"})
    image, text = inputs(model)
    handle = elip_plugin.find_handle(model)
    torch.manual_seed(5)
    with recorded_lengths(stack_of(model)) as lengths:
        pruned = features(model, image, text)
    assert lengths == list(handle.plan.tokens) and handle.plan.removed > 0.2
    assert_learns(model, pruned.square().mean())
    torch.manual_seed(5)
    assert torch.equal(features(model, image, text.flip(0)), pruned)
    plain = gradients(model, (image, text), False)
    torch.testing.assert_close(gradients(model, (image, text), True), plain)
    with recorded_lengths(stack_of(model)) as lengths, torch.no_grad():
        model.eval().encode_image(image)
    assert lengths == list(handle.plan.tokens)
    full = features(base, image, text)
    with handle.disabled():  # checkpointing
        torch.testing.assert_close(features(model.train(), image, text), full)
    model.visual.set_grad_checkpointing(False)
    with handle.disabled():
        assert torch.equal(features(model, image, text), full)
    handle.remove()
    assert [type(m) for m in model.modules()] == [type(m) for m in base.modules()]
    assert torch.equal(features(model, image, text), full)


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_in_any_mode_computes_what_its_own_forward_does(kind: str) -> None:
    """Looking ahead, and ToMe where it merges nothing."""
    model = make(kind, {"reducer": "tome"}).double()
    block, x = stack_of(model)[3], torch.randn(2, 9, 32, dtype=torch.float64)
    if block.elip_parts.rotary is not None:
        pytest.skip("with its positions, in test_rotary.py")
    expected = block(x)
    torch.testing.assert_close(block(x, run=look_ahead), expected, rtol=0, atol=1e-12)
    sizes = torch.ones(2, 9, dtype=torch.float64)
    out, after, _ = block(x, run=merge_inside, how=ToMe(), sizes=sizes, remove=0, prefix=1)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    assert torch.equal(after, sizes)


@needs_timm
def test_timm_towers_follow_a_change_of_resolution() -> None:
    model = make("timm average", "fast")
    model.visual.set_input_size(128)
    with recorded_lengths(stack_of(model)) as lengths:
        model(*inputs(model))
    plan = elip_plugin.find_handle(model).plan
    assert plan.num_patches == 64 and lengths == list(plan.tokens)


@needs_timm
def test_heads_and_blocks_that_cannot_be_guided_are_refused() -> None:
    config = config_of("timm average")
    config["vision_cfg"]["timm_proj"] = "mlp"
    small = {"img_size": TIMM_SIZE, "depth": 6}
    with pytest.raises(UnsupportedModelError, match=r"Mlp has no linear map.*text_weight 0"):
        build({**config, "elip": "fast"}, **small)
    build({**config, "elip": {"preset": "fast", "text_weight": 0.0}}, **small)
    model = make("timm average")
    model.visual.trunk.blocks[3].attn.proj_drop.p = 0.1
    with pytest.raises(UnsupportedModelError, match=r"dropout \{.*: 0\.1\}.*must be determ"):
        elip_plugin.apply(model)
    pytest.importorskip("timm.models.naflexvit")
    vision = {"timm_model_name": "naflexvit_base_patch16_siglip", "timm_pool": "map"}
    config["vision_cfg"] = {**vision, "timm_proj": "none", "image_size": TIMM_SIZE}
    with pytest.raises(UnsupportedModelError, match="NaFlexVit gives each image its own number"):
        build({**config, "elip": "half"}, depth=6)


@needs_timm
def test_looking_ahead_skips_stochastic_depth() -> None:
    config = config_of("timm average")
    config["vision_cfg"]["timm_drop_path"] = 0.5
    block = stack_of(build({**config, "elip": "fast"}))[10]
    x = torch.randn(4, 9, 32)
    looked = block(x, run=look_ahead)
    torch.testing.assert_close(looked, block.eval()(x))


@pytest.mark.parametrize("name", LISTED)
def test_listed_model(name: str) -> None:
    """A narrow copy at the real resolution and depth: every block sees the planned tokens."""
    model = build(open_clip.get_model_config(name))
    plan = elip_plugin.find_handle(model).plan
    with recorded_lengths(stack_of(model)) as lengths:
        out = model(*inputs(model, batch=1))
    assert lengths == list(plan.tokens) and 0.2 < plan.removed < 0.35
    out["image_features"].sum().backward()
    assert any(p.grad is not None for p in stack_of(model)[0].parameters())
    fast = f"elip-fast-{base_of(name)}"
    assert open_clip.get_model_config(fast)["elip"] == {"preset": "fast"}


def test_the_matrix_misses_no_listed_model() -> None:
    listed = set(elip_plugin.list_models("open_clip"))
    ours = {name for name in listed if base_of(name) in OWN}
    every = {f"{prefix}{base_of(name)}" for name in LISTED for prefix in PREFIXES}
    stems = {f"elip-lowres-{name}" for name in ("MobileCLIP-B", "MobileCLIP2-B")}
    assert ours == every - stems
    for name in stems & every:
        with pytest.raises(UnsupportedModelError, match=f"{base_of(name)}.*needs one convolution"):
            open_clip.create_model(name)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("RN50", "is a ResNet, which has no tokens"),
        ("convnext_base", "convolutional or mixed"),
        ("swin_base_patch4_window7_224", "windows"),
    ],
)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_asking_for_an_unsupported_model_says_why(name: str, why: str, prefix: str) -> None:
    assert f"{prefix}{name}" not in open_clip.list_models()
    with pytest.raises(UnsupportedModelError, match=f"{name}.*{why}.*are supported") as caught:
        open_clip.create_model(f"{prefix}{name}")
    assert "\n" not in str(caught.value)
