"""The laws of a host for every vision transformer that is found by itself."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from conftest import recorded_lengths
from hosts.anyvit import vits
from hosts.anyvit.vits import CASES, PATCHES, WIDTH, images, make
from torch import Tensor, nn

import elip_plugin
from elip_plugin.config import ElipConfig
from elip_plugin.errors import ConfigError, GuideError, UnsupportedModelError
from elip_plugin.hosts.anyvit.check import check
from elip_plugin.hosts.registry import describe
from elip_plugin.patching.install import install
from elip_plugin.reducers import reducers

NEW = {"preset": "fast", "text_weight": 0.5}


def config_of(reducer: str) -> dict[str, Any]:
    preset = {} if "stages" in reducers()[reducer].plan else {"preset": "fast"}
    return {**preset, "reducer": reducer}


def state_of(model: Any) -> dict[str, Any]:
    """All that lies on a model: classes, attributes, weights."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        found[f"{name}:class"] = type(module)
        found |= {f"{name}.{k}": v for k, v in vars(module).items() if not isinstance(v, dict)}
    return found | {k: v.clone() for k, v in model.state_dict().items()}


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    if first.keys() != second.keys():
        return False
    equal = (
        torch.equal(a, second[k]) if isinstance(a, Tensor) else a is second[k] or a == second[k]
        for k, a in first.items()
    )
    return all(equal)


@pytest.mark.parametrize("name", CASES)
def test_describing_changes_nothing(name: str) -> None:
    model = make(name)
    before, random = state_of(model), torch.get_rng_state()
    description = describe(model)
    assert same(state_of(model), before)
    assert torch.equal(torch.get_rng_state(), random)
    shape = description.tower.shape
    assert (shape.num_patches, shape.depth, shape.width) == (PATCHES, 12, WIDTH)
    assert shape.prefix == CASES[name].prefix
    assert shape.class_query == (shape.prefix > 0)
    assert check(description.tower) < 1e-12


@pytest.mark.parametrize("name", CASES)
def test_disabled_evaluated_and_removed_are_the_base_model(name: str) -> None:
    case, model, x = CASES[name], make(name), images()
    before, state = case.encode(model, x), state_of(model)
    handle = elip_plugin.apply(model, NEW)
    assert list(model.state_dict()) == [k for k in state if k in model.state_dict()]
    with handle.guide(torch.randn(2, case.guide)):
        pruned = case.encode(model, x)
    assert pruned.shape == before.shape and not torch.equal(pruned, before)
    with handle.disabled():
        assert torch.equal(case.encode(model, x), before)
    assert torch.equal(case.encode(model.eval(), x), before)
    handle.remove()
    assert same(state_of(model.train()), state)
    assert torch.equal(case.encode(model, x), before)


@pytest.mark.parametrize("name", CASES)
def test_each_block_has_the_planned_tokens(name: str) -> None:
    case, model = CASES[name], make(name)
    described = describe(model)
    for reducer in reducers():
        if reducer == "similarity" and not described.tower.norm:
            continue
        install(described, ElipConfig.from_mapping(config_of(reducer)))
        handle = elip_plugin.find_handle(model)
        guide, x = handle.guide(torch.randn(2, case.guide)), images()
        with guide, recorded_lengths(case.blocks(model), case.dim) as lengths:
            case.encode(model, x).square().sum().backward()
        assert lengths == list(handle.plan.tokens)
        assert lengths[-1] < PATCHES + case.prefix
        for block in case.blocks(model):
            for weight in block.parameters():
                assert weight.grad is not None
        handle.remove()


@pytest.mark.parametrize("name", CASES)
def test_the_guide_by_hand_chooses(name: str) -> None:
    case, model, x = CASES[name], make(name), images()
    handle = elip_plugin.apply(model, {"preset": "fast", "text_weight": 0.9})
    kept = []
    for seed in (0, 0, 1):
        guide = torch.randn(2, case.guide, generator=torch.Generator().manual_seed(seed))
        with handle.guide(guide), handle.trace() as trace:
            case.encode(model, x)
        kept.append([stage.kept for stage in trace.stages])
    assert len(kept[0]) == 3
    assert all(torch.equal(a, b) for a, b in zip(kept[0], kept[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(kept[0], kept[2], strict=True))
    with pytest.raises(GuideError), handle.guide(torch.randn(2, WIDTH + 1)):
        case.encode(model, x)
    with pytest.warns(UserWarning, match="without a text guide, so it keeps all"):
        full = case.encode(model, x)
    handle.remove()
    assert torch.equal(full, case.encode(model, x))


@pytest.mark.parametrize("name", CASES)
def test_copies_are_pruned_alike(name: str) -> None:
    case, model, x = CASES[name], make(name), images()
    base = type(model)
    elip_plugin.apply(model, "half")
    expected = case.encode(model, x)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(case.encode(copied, x), expected)
        elip_plugin.find_handle(copied).remove()
        assert type(copied) is base and not torch.equal(case.encode(copied, x), expected)
    assert torch.equal(case.encode(model, x), expected)


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("name", ["CLIP", "torch", "torchvision", "timm ViT", "DINOv2"])
def test_compiled_as_eager(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one graph; a compiler runs on blocks that are rows in the tests of transformers."""
    monkeypatch.setattr(vits, "DEPTH", 4)
    monkeypatch.setitem(vits.VISION, "num_hidden_layers", 4)
    case, model, x = CASES[name], make(name), images()
    stages = [{"block": 1, "lookahead": 2, "keep": 0.5}]
    handle = elip_plugin.apply(model, {"stages": stages, "text_weight": 0.5})
    guide = torch.randn(2, case.guide)
    torch._dynamo.reset()
    breaks = torch._dynamo.utils.counters["graph_break"]
    breaks.clear()
    found = []
    for encode in (case.encode, torch.compile(case.encode, backend="aot_eager")):
        model.zero_grad()
        with handle.guide(guide):
            out = encode(model, x)
        out.square().sum().backward()
        weights = case.blocks(model)[3].named_parameters()
        found.append((out, {n: weight.grad for n, weight in weights}))
    torch.testing.assert_close(*found)
    assert not breaks


@pytest.mark.parametrize("name", CASES)
def test_bf16(name: str) -> None:
    case, model, x = CASES[name], make(name), images()
    handle = elip_plugin.apply(model, "half")
    with recorded_lengths(case.blocks(model), case.dim) as lengths, torch.autocast("cpu"):
        case.encode(model, x).float().square().sum().backward()
    assert lengths == list(handle.plan.tokens)
    model.to(torch.bfloat16)
    if name not in ("CLIP", "clip-anytorch"):  # whose norms are in float32
        assert case.encode(model, x.bfloat16()).dtype is torch.bfloat16


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("reducer", ["elip", "tome"])
@pytest.mark.parametrize("name", ["DINOv2", "DeiT"])
def test_checkpointing_of_transformers(
    name: str, reducer: str, reentrant: bool, recwarn: Any
) -> None:
    transformers = pytest.importorskip("transformers", minversion="4.57")
    case, gradients = CASES[name], []
    for checkpointed in (False, True):
        model = make(name)
        handle = elip_plugin.apply(model, config_of(reducer))
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            recwarn.clear()
        guide = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(0))
        with handle.guide(guide):
            case.encode(model, images()).square().sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    # transformers 4 checkpoints the step that chooses too, which has no gradient: torch says so.
    if not reentrant or not transformers.__version__.startswith("4."):
        assert not [w for w in recwarn if "requires_grad" in str(w.message)]
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("reducer", ["elip", "tome"])
def test_checkpointing_of_timm(reducer: str) -> None:
    """It takes the blocks from the list's children."""
    case, x, gradients = CASES["timm ViT"], images(), []
    for checkpointed in (False, True):
        model = make("timm ViT")
        model.set_grad_checkpointing(checkpointed)
        handle = elip_plugin.apply(model, config_of(reducer))
        guide = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(0))
        with handle.guide(guide), recorded_lengths(model.blocks) as lengths:
            out = case.encode(model, x)
            assert lengths == list(handle.plan.tokens)
            out.square().sum().backward()
        assert len(lengths) > 12 or not checkpointed  # run again in the backward pass
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("name", ["DINOv2", "DeiT"])
def test_recording_is_refused_while_pruning(name: str) -> None:
    model, x = make(name), images()
    handle = elip_plugin.apply(model, "half")
    with pytest.raises(UnsupportedModelError, match="output_hidden_states"):
        model(x, output_hidden_states=True)
    with handle.disabled():
        assert len(model(x, output_hidden_states=True).hidden_states) == 13
    model(x)


@pytest.mark.parametrize("name", ["timm ViT", "timm DINOv2"])
def test_other_methods_keep_all_tokens_and_the_features_alone_are_pruned(name: str) -> None:
    model, x = make(name), images()
    before = model.forward_features(x), model.forward_intermediates(x, stop_early=True)[1]
    handle = elip_plugin.apply(model, "half")
    with recorded_lengths(model.blocks) as lengths:
        assert model.forward_features(x).shape == before[0].shape
    assert lengths == list(handle.plan.tokens)
    after = model.forward_intermediates(x, stop_early=True)[1]
    assert all(torch.equal(a, b) for a, b in zip(before[1], after, strict=True))
    assert isinstance(model.blocks[0], nn.Module) and len(list(model.blocks[:3])) == 3


def test_a_plan_is_for_the_size_that_it_is_asked_for() -> None:
    model = make("DINOv2").eval()
    handle = elip_plugin.apply(model, "embed", image_size=32)
    assert handle.plan.tokens[0] == 17
    with handle.trace() as trace, torch.no_grad():
        model(torch.randn(1, 3, 32, 32))
    assert trace.stages[0].kept.shape[1] + 1 == handle.plan.tokens[trace.stages[0].block]
    handle.remove()
    assert elip_plugin.apply(model, "embed", image_size=(32, 64)).plan.tokens[0] == 33
    elip_plugin.find_handle(model).remove()
    assert elip_plugin.apply(model, "embed").plan.tokens[0] == 65
    elip_plugin.find_handle(model).remove()
    with pytest.raises(ConfigError, match="description, which is for a size already"):
        elip_plugin.apply(describe(model), "embed", image_size=32)
    with pytest.raises(UnsupportedModelError, match=r"\(3, 7, 7\)"):
        elip_plugin.apply(model, "embed", image_size=7)
    hf = pytest.importorskip("transformers", "4.57")
    clip = hf.CLIPVisionModel(hf.CLIPVisionConfig(num_hidden_layers=2))
    with pytest.raises(UnsupportedModelError, match="towers of transformers have the size"):
        elip_plugin.apply(clip, "embed", image_size=384)


@pytest.mark.skipif(not hasattr(torch.export, "Dim"), reason="an older torch")
def test_a_mask_that_is_given_to_an_exported_tower_is_refused() -> None:
    """Transformers makes one of its own where none is given, which is left out."""
    pytest.importorskip("torch", minversion="2.6")
    model = make("DINOv2").eval()
    handle = elip_plugin.apply(model, {"preset": "half", "eval_mode": "image"})
    batch = {0: torch.export.Dim("batch", min=1)}
    x = images(batch=2)
    program = torch.export.export(model, (x,), dynamic_shapes=(batch,))
    x = images(batch=3)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x).pooler_output, model(x).pooler_output)
        with handle.disabled():
            assert (program.module()(x).pooler_output - model(x).pooler_output).abs().max() > 1e-3
    if "attention_mask" not in inspect.signature(type(model).forward).parameters:
        return  # of transformers 4
    mask = torch.ones(2, PATCHES + 1, dtype=torch.bool)
    with pytest.raises(UnsupportedModelError, match="given a mask"):
        torch.export.export(model, (images(),), {"attention_mask": mask})
