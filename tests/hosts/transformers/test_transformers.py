"""The laws of a host for every family of transformers that shares CLIP's encoder."""

from __future__ import annotations

import copy
import inspect
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import recorded_lengths

import elip_plugin
from elip_plugin.errors import ConfigError, GuideError, UnsupportedModelError
from elip_plugin.reducers import reducers

hf = pytest.importorskip("transformers", minversion="4.57")

from hosts.transformers.tiny import (  # noqa: E402
    ALL,
    MODELS,
    UNGUIDED,
    VISION,
    inputs,
    layers_of,
    loss_of,
    make,
    tensors,
)

FAMILIES = list(MODELS)
SOME = ["clip", "siglip", "dual", "blip_vqa", "instructblip"]
CASES = [
    (family, reducer)
    for family in ALL
    for reducer, method in reducers().items()
    if family not in UNGUIDED or not method.text_alone
]


def config_of(reducer: str, family: str = "", **fields: Any) -> dict[str, Any]:
    preset = {} if "stages" in reducers()[reducer].plan else {"preset": "fast"}
    if family in UNGUIDED and reducers()[reducer].reads_text:
        fields = {"text_weight": 0.0, **fields}
    return {**preset, "reducer": reducer, **fields}


def outputs_of(model: Any, batch: dict[str, Any]) -> list[torch.Tensor]:
    with torch.no_grad():
        return tensors(model(**batch))


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("family", ALL)
def test_disabled_evaluated_and_removed_are_the_base_model(family: str) -> None:
    model, batch = make(family), inputs(family=family)
    cls, keys = type(model), list(model.state_dict())
    classes = {name: type(module) for name, module in model.named_modules()}
    before = outputs_of(model.train(), batch)
    handle = elip_plugin.apply(model, config_of("elip", family))
    assert type(model).__name__ == cls.__name__
    assert list(model.state_dict()) == keys
    pruned = model(**batch)
    assert not torch.equal(tensors(pruned)[0], before[0])
    if "text_embeds" in pruned and family in FAMILIES:  # the text is not pruned
        assert any(torch.equal(pruned.text_embeds, tensor) for tensor in before)
    with handle.disabled():
        assert same(outputs_of(model, batch), before)
    assert same(outputs_of(model.eval(), batch), before)
    handle.remove()
    assert same(outputs_of(model.train(), batch), before)
    assert {name: type(module) for name, module in model.named_modules()} == classes
    assert not [name for m in model.modules() for name in vars(m) if name.startswith("elip")]
    assert not hasattr(model.config, "elip")


@pytest.mark.parametrize(("family", "reducer"), CASES)
def test_each_layer_has_the_planned_tokens(family: str, reducer: str) -> None:
    model = make(family).train()
    classes = [type(module) for module in model.modules()]
    handle = elip_plugin.apply(model, config_of(reducer, family))
    with recorded_lengths(layers_of(model)) as lengths:
        loss_of(model(**inputs(family=family))).backward()
    assert lengths == list(handle.plan.tokens)
    assert lengths[-1] < 64 + (family != "siglip")
    for layer in layers_of(model):
        for parameter in layer.parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0
    handle.remove()
    assert [type(module) for module in model.modules()] == classes


@pytest.mark.parametrize("family", FAMILIES)
def test_captions_change_the_choice_and_are_encoded_once(family: str) -> None:
    model = make(family).train()
    handle = elip_plugin.apply(model, config_of("elip", text_weight=0.9))
    calls = []
    hook = model.text_model.register_forward_hook(lambda *_: calls.append(1))
    first, second = inputs(), inputs()
    second["input_ids"] = second["input_ids"].flip(0)
    with handle.trace() as trace:
        out = model(**first)
        kept = [stage.kept for stage in trace.stages]
        model(**second)
        other = [stage.kept for stage in trace.stages]
    assert len(calls) == 2
    assert any(not torch.equal(a, b) for a, b in zip(kept, other, strict=True))
    assert "text_model" not in vars(model)
    hook.remove()
    with handle.guide(out.text_embeds):  # the same guide, given by hand
        images = model.get_image_features(pixel_values=first["pixel_values"])
    images = images if isinstance(images, torch.Tensor) else images.pooler_output
    torch.testing.assert_close(torch.nn.functional.normalize(images, dim=-1), out.image_embeds)
    with pytest.raises(GuideError, match="text features have shape"), handle.guide(images[:, :5]):
        pass


@pytest.mark.parametrize("family", ALL)
def test_the_methods_keep_their_signatures(family: str) -> None:
    model = make(family).train()
    methods = [name for name in ("forward", "generate") if hasattr(model, name)]
    before = [inspect.signature(getattr(model, name)) for name in methods]
    elip_plugin.apply(model, config_of("elip", family))
    assert [inspect.signature(getattr(model, name)) for name in methods] == before
    batch = inputs(family=family)
    assert isinstance(model(**batch, return_dict=False), tuple)
    expected = outputs_of(model, batch)
    first = [batch.pop(p.name, p.default) for p in list(before[0].parameters.values())[:3]]
    with torch.no_grad():
        assert same(tensors(model(*first, **batch)), expected)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("family", SOME)
@pytest.mark.parametrize("reducer", ["elip", "tome"])
def test_checkpointing_gives_the_same_gradients(
    family: str, reducer: str, reentrant: bool, recwarn: Any
) -> None:
    gradients = []
    for checkpointed in (False, True):
        model = make(family).train()
        elip_plugin.apply(model, config_of(reducer))
        if checkpointed:
            whole = model if model.supports_gradient_checkpointing else model.vision_model
            whole.gradient_checkpointing_enable({"use_reentrant": reentrant})
            recwarn.clear()
            model.vision_model.requires_grad_(True)
        with recorded_lengths(layers_of(model)) as lengths:
            loss_of(model(**inputs(family=family))).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert not [w for w in recwarn if "requires_grad" in str(w.message)]
    assert len(lengths) >= 12
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize("family", ["clip", "siglip", "blip2", "instructblip"])
def test_attention_implementations_agree(family: str) -> None:
    features = []
    for implementation in ("eager", "sdpa"):
        model = make(family).train()
        # Some versions' Q-Formers have no other than eager attention.
        part = model if family in FAMILIES else model.vision_model
        part.set_attn_implementation(implementation)
        elip_plugin.apply(model, config_of("elip", family))
        features.append(outputs_of(model, inputs(family=family)))
    torch.testing.assert_close(*features)


@pytest.mark.parametrize("family", ["clip", "siglip", "blip_vqa"])
@pytest.mark.parametrize("flag", ["output_attentions", "output_hidden_states"])
def test_recording_is_refused_while_pruning(family: str, flag: str) -> None:
    model = make(family).train()
    model.set_attn_implementation("eager")
    key, batch = flag.removeprefix("output_"), inputs(family=family)

    def recorded() -> Any:
        out = model(**batch, **{flag: True})
        return out.get("vision_model_output", out).get(key)

    before = recorded()
    handle = elip_plugin.apply(model, "fast")
    with pytest.raises(UnsupportedModelError, match=flag):
        recorded()
    with handle.disabled():
        after = recorded()
    if before is not None:  # 4.57's SigLIP records nothing of a whole model
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert model(**batch).loss.isfinite()
    handle.remove()
    for module in model.modules():
        left = getattr(vars(module).get("forward"), "__func__", None)
        assert left is None or left is type(module).forward


def test_a_forward_on_the_object_is_refused() -> None:
    model = make("clip")
    layer = layers_of(model)[3]
    layer.forward = lambda *given, **options: type(layer).forward(layer, *given, **options)
    with pytest.raises(UnsupportedModelError, match="was replaced on the object"):
        elip_plugin.apply(model)


@pytest.mark.parametrize("family", ALL)
def test_copies_are_pruned_alike(family: str) -> None:
    model, batch = make(family).train(), inputs(family=family)
    elip_plugin.apply(model, config_of("elip", family))
    expected = outputs_of(model, batch)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert same(outputs_of(copied, batch), expected)
        elip_plugin.find_handle(copied).remove()
        assert type(copied) is type(model).replaces
    assert same(outputs_of(model, batch), expected)


@pytest.mark.parametrize("family", SOME)
def test_bf16_autocast(family: str) -> None:
    model = make(family).train()
    handle = elip_plugin.apply(model, "fast")
    with recorded_lengths(layers_of(model)) as lengths, torch.autocast("cpu"):
        loss = model(**inputs(family=family)).loss
    loss.backward()
    assert lengths == list(handle.plan.tokens)
    grad = next(layers_of(model)[0].parameters()).grad
    assert grad is not None and grad.isfinite().all() and grad.abs().sum() > 0


@pytest.mark.parametrize("family", SOME)
def test_bf16_weights(family: str) -> None:
    model = make(family).train().bfloat16()
    handle = elip_plugin.apply(model, "fast")
    batch = inputs(family=family)
    batch["pixel_values"] = batch["pixel_values"].bfloat16()
    with recorded_lengths(layers_of(model)) as lengths:
        out = model(**batch)
    out.loss.backward()
    assert lengths == list(handle.plan.tokens)
    assert tensors(out)[1].dtype is torch.bfloat16
    grad = next(layers_of(model)[0].parameters()).grad
    assert grad.dtype is torch.bfloat16 and grad.isfinite().all() and grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("family", "backend"),
    [("clip", "aot_eager")]
    + [
        pytest.param(family, "aot_eager", marks=pytest.mark.newest)
        for family in ("siglip", "blip_vqa")
    ]
    # The graphs of the others have the same operations for the compiler.
    + [
        pytest.param(family, "inductor", marks=[pytest.mark.slow, pytest.mark.newest])
        for family in ("clip", "blip_vqa")
    ],
)
def test_compiled_as_eager(family: str, backend: str) -> None:
    model = make(family, num_hidden_layers=2).train()
    stages = [{"block": 0, "lookahead": 2, "keep": 0.5}]
    elip_plugin.apply(model, {"stages": stages, "text_weight": 0.5})
    torch._dynamo.reset()
    breaks = torch._dynamo.utils.counters["graph_break"]
    breaks.clear()
    found = []
    for call in (model, torch.compile(model, backend=backend)):
        model.zero_grad()
        out = call(**inputs(family=family))
        out.loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append((out.image_embeds, out.loss, gradients))
    torch.testing.assert_close(*found)
    assert not breaks


@pytest.mark.parametrize("family", ["clip", "siglip", "blip2_itm"])
def test_the_attention_of_the_host_runs_on_the_kept_tokens(family: str) -> None:
    attention, keys = hf.modeling_utils.ALL_ATTENTION_FUNCTIONS, []

    def as_sdpa(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any
    ) -> Any:
        if attention_mask is None:
            keys.append(key.shape[2])
        return attention["sdpa"](module, query, key, value, attention_mask, **options)

    model = make(family).train()
    handle = elip_plugin.apply(model, "fast")
    expected = outputs_of(model, inputs(family=family))
    attention["of_the_test"] = as_sdpa
    try:
        model.vision_model.config._attn_implementation = "of_the_test"
        assert same(outputs_of(model, inputs(family=family)), expected)
    finally:
        del attention["of_the_test"]
    assert keys == list(handle.plan.tokens)


@pytest.mark.skipif(hf.utils.is_flash_attn_2_available(), reason="flash-attn is installed")
def test_flash_attention_without_its_package_is_the_hosts_error() -> None:
    model = make("clip").train()
    elip_plugin.apply(model, "fast")
    expected = outputs_of(model, inputs())
    with pytest.raises((ImportError, ValueError), match=r"Flash ?Attention"):
        model.set_attn_implementation("flash_attention_2")
    assert same(outputs_of(model, inputs()), expected)


@pytest.mark.parametrize("cls", ["CLIPVisionModel", "CLIPVisionModelWithProjection"])
def test_clip_towers_alone(cls: str) -> None:
    model = getattr(hf, cls)(hf.CLIPVisionConfig(**VISION, projection_dim=24)).train()
    images = inputs()["pixel_values"]
    before = model(pixel_values=images)[0]
    handle = elip_plugin.apply(model, "fast")
    width = 24 if cls.endswith("Projection") else 48
    recorded = recorded_lengths(layers_of(model))
    with recorded as lengths, handle.guide(torch.randn(len(images), width)):
        assert not torch.equal(model(pixel_values=images)[0], before)
    assert lengths == list(handle.plan.tokens)
    handle.remove()
    assert torch.equal(model(pixel_values=images)[0], before)


def test_siglip_tower_alone() -> None:
    model = hf.SiglipVisionModel(hf.SiglipVisionConfig(**VISION)).train()
    handle = elip_plugin.apply(model, {"preset": "fast", "text_weight": 0.0})
    with recorded_lengths(layers_of(model)) as lengths:
        model(pixel_values=inputs()["pixel_values"])
    assert lengths == list(handle.plan.tokens)


def test_a_plain_vit_alone() -> None:
    vit = hf.ViTModel(hf.ViTConfig(**VISION), use_mask_token=True).train()
    images = inputs()["pixel_values"]
    before = vit(images)
    handle = elip_plugin.apply(vit, "fast")
    with recorded_lengths(layers_of(vit)) as lengths, handle.guide(torch.randn(len(images), 48)):
        pruned = vit(images)
        assert torch.equal(vit(images, return_dict=False)[1], pruned.pooler_output)
        mask = torch.zeros(len(images), 64, dtype=torch.bool)
        with pytest.raises(UnsupportedModelError, match="bool_masked_pos is given to a pruned"):
            vit(images, bool_masked_pos=mask)
        with handle.disabled():
            masked = vit(images, bool_masked_pos=mask)
    assert lengths == [*handle.plan.tokens] * 2 + [65] * 12
    assert not torch.equal(pruned.pooler_output, before.pooler_output)
    assert torch.equal(masked.pooler_output, before.pooler_output)
    handle.remove()
    assert torch.equal(vit(images).pooler_output, before.pooler_output)


@pytest.mark.parametrize("family", ["clip", "blip_vqa", "instructblip"])
def test_interpolated_positions_get_their_own_plan(family: str) -> None:
    model = make(family).train()
    handle = elip_plugin.apply(model, "fast")
    batch = inputs(family=family)
    batch["pixel_values"] = torch.randn(3, 3, 96, 96)
    with recorded_lengths(layers_of(model)) as lengths:
        model(**batch, interpolate_pos_encoding=True)
    assert lengths[0] == 145 and lengths[-1] < 145 < 2 * handle.plan.tokens[0] + 16


def test_a_classifier_is_pruned_as_any_vit() -> None:
    model = hf.CLIPForImageClassification(hf.CLIPConfig(vision_config=VISION)).train()
    images = inputs()["pixel_values"]
    before = model(images).logits
    handle = elip_plugin.apply(model, "half")
    with recorded_lengths(layers_of(model)) as lengths:
        assert not torch.equal(model(images).logits, before)
    assert lengths == list(handle.plan.tokens)
    handle.remove()
    assert torch.equal(model(images).logits, before)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="leaks the answer"):
        elip_plugin.apply(make("clip"), {"preset": "fast", "eval_mode": "text"})
    with pytest.raises(UnsupportedModelError, match=r"dropout .*attn\.dropout.: 0\.1"):
        elip_plugin.apply(make("clip", attention_dropout=0.1))
    naflex = hf.Siglip2Model(hf.Siglip2Config(
        text_config={"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1,
                     "vocab_size": 10},
        vision_config={"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1},
    ))  # fmt: skip
    with pytest.raises(UnsupportedModelError, match="NaFlex"):
        elip_plugin.apply(naflex)
    with pytest.raises(UnsupportedModelError, match=r"as any other ViT: dropout: .*: 0\.1"):
        elip_plugin.apply(hf.ViTModel(hf.ViTConfig(**VISION, hidden_dropout_prob=0.1)))


@pytest.mark.parametrize("family", [*SOME, "chinese_clip", "blip_itm", "blip2_itm", "blip2"])
def test_saved_models_load_without_the_plugin(family: str, tmp_path: Path) -> None:
    model, batch = make(family).train(), inputs(family=family)
    weight = 0.0 if family in UNGUIDED else 0.3
    handle = elip_plugin.apply(model, config_of("elip", text_weight=weight))
    model.save_pretrained(tmp_path)
    assert not hasattr(model.config, "elip")
    loaded = type(model).replaces.from_pretrained(tmp_path).train()
    assert type(loaded) is type(model).replaces
    assert loaded.config.architectures == [type(loaded).__name__]
    with handle.disabled():
        assert same(outputs_of(loaded, batch), outputs_of(model, batch))
    again = elip_plugin.apply(loaded, loaded.config.elip)
    assert again.config == handle.config
    assert same(outputs_of(loaded, batch), outputs_of(model, batch))


WITHOUT_THE_PLUGIN = """
import sys
sys.modules["elip_plugin"] = None  # importing it would raise
import torch, transformers
model = transformers.AutoModel.from_pretrained(sys.argv[1]).eval()
batch = torch.load(sys.argv[2])
torch.testing.assert_close(model(**batch["inputs"]).image_embeds, batch["expected"])
model.save_pretrained(sys.argv[3])
print(type(model).__module__)
"""


@pytest.mark.slow
def test_others_load_it_without_the_plugin(tmp_path: Path) -> None:
    model = make("clip").eval()
    elip_plugin.apply(model, "fast")
    model.save_pretrained(tmp_path / "model")
    expected = model(**inputs()).image_embeds
    torch.save({"inputs": inputs(), "expected": expected}, tmp_path / "batch.pt")
    places = [str(tmp_path / name) for name in ("model", "batch.pt", "again")]
    env = {**os.environ, "ELIP_AUTOLOAD": "0"}
    command = [sys.executable, "-c", WITHOUT_THE_PLUGIN, *places]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == type(model).replaces.__module__
    for folder in ("model", "again"):  # the key stays in what others save anew
        config = json.loads((tmp_path / folder / "config.json").read_text())
        assert config["elip"]["stages"] and config["architectures"] == ["CLIPModel"]
        assert not {"auto_map", "custom_pipelines"} & config.keys()
        files = {path.name for path in (tmp_path / folder).iterdir()}
        assert files == {"config.json", "model.safetensors"}


UNPICKLED = """
import pickle, sys
with open(sys.argv[1], "rb") as file:
    model = pickle.load(file)
import elip_plugin
print(elip_plugin.find_handle(model).plan.tokens)
"""


@pytest.mark.slow
def test_pickled_models_are_pruned_in_another_process(tmp_path: Path) -> None:
    model = make("clip")
    handle = elip_plugin.apply(model, "fast")
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(model))
    command = [sys.executable, "-c", UNPICKLED, str(tmp_path / "model.pkl")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == str(handle.plan.tokens)


def test_what_is_pushed_needs_no_plugin(tmp_path: Path, monkeypatch: Any) -> None:
    pushed: dict[str, str] = {}

    def upload(self: Any, folder: str, *args: Any, **options: Any) -> None:
        texts = (path for path in Path(folder).iterdir() if path.suffix in (".md", ".json"))
        pushed.update({path.name: path.read_text() for path in texts})

    def no_card(*args: Any, **options: Any) -> Any:
        raise hf.utils.hub.EntryNotFoundError("no card")

    model = make("clip")
    elip_plugin.apply(model, "fast")
    monkeypatch.setattr(hf.utils.hub.PushToHubMixin, "_upload_modified_files", upload)
    monkeypatch.setattr(hf.utils.hub.ModelCard, "load", no_card)
    repository = SimpleNamespace(repo_id="somebody/model")
    monkeypatch.setattr(hf.utils.hub, "create_repo", lambda *_, **__: repository, raising=False)
    if hasattr(hf.utils.hub, "hf_api"):  # transformers 5
        api = SimpleNamespace(create_repo=lambda *_, **__: repository)
        monkeypatch.setattr(hf.utils.hub, "hf_api", lambda: api)
    monkeypatch.chdir(tmp_path)  # transformers 4 writes a folder of the repository's name
    model.push_to_hub("somebody/model")
    assert json.loads(pushed["config.json"])["architectures"] == ["CLIPModel"]
    assert "elip" not in pushed["README.md"] and "elip_plugin" not in pushed["config.json"]
