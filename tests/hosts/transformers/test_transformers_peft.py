"""LoRA adapters of peft on pruned models: apply in either order, merge, save, remove."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import recorded_lengths

import elip_plugin

hf = pytest.importorskip("transformers", minversion="4.57")
peft = pytest.importorskip("peft")

from hosts.transformers.tiny import inputs, layers_of, make  # noqa: E402

from elip_plugin.hosts.registry import find_host  # noqa: E402

CONFIG = {"preset": "fast", "text_weight": 0.5}
TARGETS = {
    "clip": ["q_proj", "v_proj", "fc1", "visual_projection"],
    "siglip": ["q_proj", "v_proj", "fc1"],
    "dual": ["q_proj", "v_proj", "query", "value", "visual_projection"],
    "blip": ["qkv", "fc1", "query", "visual_projection"],
}


def adapt(model: Any, family: str) -> Any:
    """Add adapters that are not zero, equal ones each time."""
    torch.manual_seed(5)
    lora = peft.LoraConfig(r=4, target_modules=TARGETS[family], init_lora_weights=False)
    return peft.get_peft_model(model, lora).train()


@pytest.mark.parametrize("family", list(TARGETS))
def test_the_order_of_pruning_and_adapting_does_not_matter(family: str) -> None:
    batch, outputs, gradients = inputs(), [], []
    for order in ("pruned first", "adapted first", "the model inside"):
        model = make(family)
        if order == "pruned first":
            elip_plugin.apply(model, CONFIG)
        adapted = adapt(model, family)
        if order != "pruned first":
            elip_plugin.apply(adapted if order == "adapted first" else model, CONFIG)
        handle = elip_plugin.find_handle(adapted)
        with recorded_lengths(layers_of(model)) as lengths:
            out = adapted(**batch)
        assert lengths == list(handle.plan.tokens)
        out.loss.backward()
        outputs.append(out.image_embeds)
        trained = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
        assert all("lora_" in name for name in trained)
        gradients.append({name: p.grad for name, p in trained.items()})
        of_tower = [g for n, g in gradients[-1].items() if "vision_model" in n and g is not None]
        assert of_tower and all(g.abs().sum() > 0 for g in of_tower)
        with handle.guide(out.text_embeds):  # through the adapted projection, too
            images = adapted.get_image_features(pixel_values=batch["pixel_values"])
        images = images if isinstance(images, torch.Tensor) else images.pooler_output
        unit = torch.nn.functional.normalize(images, dim=-1)
        torch.testing.assert_close(unit, out.image_embeds)
    for other_output, other in zip(outputs[1:], gradients[1:]):
        assert torch.equal(other_output, outputs[0])
        assert all(torch.equal(g, gradients[0][n]) for n, g in other.items() if g is not None)


@pytest.mark.parametrize("family", list(TARGETS))
def test_merged_adapters_choose_the_same_and_removing_is_bitwise(family: str) -> None:
    model, plain, batch = make(family), make(family), inputs()
    elip_plugin.apply(model, CONFIG)
    adapted, expected = adapt(model, family), adapt(plain, family)
    with elip_plugin.find_handle(adapted).trace() as trace:
        adapted(**batch)
        before = [stage.kept for stage in trace.stages]
        with adapted.disable_adapter():
            adapted(**batch)
        assert not all(torch.equal(a, s.kept) for a, s in zip(before, trace.stages))
        merged = adapted.merge_and_unload()
        merged(**batch)
        after = [stage.kept for stage in trace.stages]
    assert merged is model and not any("lora" in name for name in merged.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    elip_plugin.find_handle(merged).remove()
    base = expected.merge_and_unload()
    assert type(merged) is type(base) and list(merged.state_dict()) == list(base.state_dict())
    assert torch.equal(merged(**batch).image_embeds, base(**batch).image_embeds)


@pytest.mark.parametrize("family", list(TARGETS))
def test_half_merges_by_the_keys_of_the_adapters(family: str) -> None:
    """Merged into the weights or not, the same tokens merge; without adapters others."""
    model, batch = make(family), inputs()
    elip_plugin.apply(model, "half")
    adapted = adapt(model, family)
    with elip_plugin.find_handle(adapted).trace() as trace:
        out = adapted(**batch).image_embeds
        before = [stage.groups for stage in trace.stages]
        with adapted.disable_adapter():
            adapted(**batch)
        assert not all(torch.equal(a, s.groups) for a, s in zip(before, trace.stages))
        merged = adapted.merge_and_unload()(**batch).image_embeds
        after = [stage.groups for stage in trace.stages]
    assert len(before) > 3 and all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    torch.testing.assert_close(merged, out)


def test_saved_adapters_name_the_base_model(tmp_path: Path) -> None:
    model = make("clip")
    model.save_pretrained(tmp_path / "base")
    elip_plugin.apply(model, CONFIG)
    adapted = adapt(model, "clip")
    adapted.save_pretrained(tmp_path / "adapter")
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    replaced = type(model).replaces
    assert saved["auto_mapping"]["parent_library"] == replaced.__module__
    assert saved["auto_mapping"]["base_model_class"] == replaced.__name__
    base = hf.CLIPModel.from_pretrained(tmp_path / "base")
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").train()
    elip_plugin.apply(loaded, CONFIG)
    assert torch.equal(loaded(**inputs()).image_embeds, adapted(**inputs()).image_embeds)


def guide_of(model: Any, features: torch.Tensor) -> torch.Tensor:
    guide: torch.Tensor = find_host(model).text_guide(model, features)
    return guide


@pytest.mark.parametrize(
    ("target", "read"), [(r"vision_model\.head\.attention", True), (r".*\.out_proj", False)]
)
def test_the_guide_reads_adapters_of_a_pooling_head(target: str, read: bool) -> None:
    """As the merged weights do; peft ignores those of the output projection alone."""
    model, features = make("siglip"), torch.randn(2, 48, generator=torch.Generator().manual_seed(3))
    plain = guide_of(model, features)
    torch.manual_seed(5)
    lora = peft.LoraConfig(r=4, target_modules=target, init_lora_weights=False)
    adapted = peft.get_peft_model(model, lora)
    guide = guide_of(adapted, features)
    with adapted.disable_adapter():
        assert torch.equal(guide_of(adapted, features), plain)
    assert torch.equal(guide, plain) is not read
    if read:
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(guide_of(merged, features), guide)


def test_adapters_are_summed_in_their_order() -> None:
    """Sums of floats depend on the order, and the order of a set differs between processes."""
    model, features = make("clip"), torch.randn(2, 24, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(5)
    names = [f"adapter_{i}" for i in range(6)]
    options = {"r": 4, "target_modules": ["visual_projection"], "init_lora_weights": False}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**options), adapter_name=names[0])
    for name in names[1:]:
        adapted.add_adapter(name, peft.LoraConfig(**options))
    read: list[str] = []
    for name, lora in model.visual_projection.lora_A.items():
        lora.register_forward_pre_hook(lambda *_, name=name: read.append(name))
    for active in (names, names[::-1]):
        adapted.base_model.set_adapter(active)
        read.clear()
        guide_of(adapted, features)
        assert read[:6] == active and read[6:] in ([], active)


def test_similarity_reads_the_adapters_of_the_cross_attentions() -> None:
    """Merged or not, the same tokens are kept; without adapters others."""
    model, batch = make("blip_vqa"), inputs(family="blip_vqa")
    torch.manual_seed(5)
    lora = peft.LoraConfig(r=4, target_modules=["query", "key", "qkv"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, lora).train()
    handle = elip_plugin.apply(adapted)
    with handle.trace() as trace:
        adapted(**batch).loss.backward()
        before = [stage.kept for stage in trace.stages]
        with adapted.disable_adapter():
            adapted(**batch)
        assert not all(torch.equal(a, s.kept) for a, s in zip(before, trace.stages))
        keys = [p for n, p in model.named_parameters() if "crossattention.self.key.lora" in n]
        assert keys and all(p.grad is not None and p.grad.any() for p in keys)
        adapted.merge_and_unload()(**batch)
    assert all(torch.equal(a, s.kept) for a, s in zip(before, trace.stages, strict=True))
