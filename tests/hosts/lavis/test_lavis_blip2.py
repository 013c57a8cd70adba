"""BLIP-2: a Q-Former reads the tokens of a tower that is mostly frozen."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from conftest import recorded_lengths
from torch import distributed

pytest.importorskip("lavis")

from lavis.processors.blip_processors import BlipImageEvalProcessor
from lavis_attributes import attributes, changes
from lavis_family import (
    CAPTIONS,
    OTHERS,
)

import elip_plugin
from elip_plugin.errors import ConfigError, GuideError, UnsupportedModelError
from elip_plugin.hosts.lavis.factory import LavisModel, create
from elip_plugin.hosts.lavis.models import ARCHS
from elip_plugin.hosts.lavis.vocab import write_vocab
from elip_plugin.measure.speed import measure_speed
from elip_plugin.patching.install import find_pruner
from elip_plugin.reducers import reducers

SIDE, PATCHES, DEPTH = 56, 16, 12
SIZES = {
    "vit": {"width": 48, "depth": DEPTH, "heads": 4},
    "bert": {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
             "intermediate_size": 64, "initializer_range": 0.2,
             "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}  # fmt: skip
FULL = [PATCHES + 1] * DEPTH


def make(tmp_path: Path, arch: str = "blip2", elip: Any = "fast", **more: Any) -> Any:
    """A small model in training mode."""
    vocabulary = tmp_path / "vocab.txt"
    write_vocab([*CAPTIONS, *OTHERS], vocabulary)
    section = {
        "arch": f"elip_{arch}", "image_size": SIDE, "num_query_token": 4, "vit_precision": "fp32",
        "load_finetuned": False, "pretrained": None, "tokenizer": str(vocabulary),
        "init": "random", "elip": elip, **{**SIZES, **more},
    }  # fmt: skip
    torch.manual_seed(0)
    model = ARCHS[arch].from_config(section).train()
    with torch.no_grad():
        for parameter in model.visual_encoder.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
    return model


@pytest.fixture(autouse=True)
def one_process() -> Iterator[None]:
    """LAVIS' loss of BLIP-2 takes a process group."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), world_size=1, rank=0)
    yield
    distributed.destroy_process_group()


@pytest.fixture
def samples() -> dict[str, Any]:
    images = torch.randn(len(CAPTIONS), 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    return {"image": images, "text_input": list(CAPTIONS), "text_output": list(OTHERS)}


def lengths_of(model: Any, *args: Any, **options: Any) -> tuple[list[int], Any]:
    torch.manual_seed(2)  # negatives are drawn
    with recorded_lengths(model.visual_encoder.blocks) as lengths:
        out = model(*args, **options)
    return lengths, out


@pytest.mark.parametrize("frozen", [True, False])
def test_the_first_stage_trains_on_the_kept_tokens(
    tmp_path: Path, samples: dict[str, Any], frozen: bool
) -> None:
    model = make(tmp_path, freeze_vit=frozen)
    plan = elip_plugin.find_handle(model).plan
    assert model.visual_encoder.training is not frozen
    read: list[tuple[int, int]] = []
    cross = model.Qformer.bert.encoder.layer[0].crossattention

    def record(module: Any, args: Any, given: Any, out: Any) -> None:
        states, mask = args[3], args[4]  # of the image, and their mask
        read.append((states.shape[1], mask.shape[-1]))

    cross.register_forward_hook(record, with_kwargs=True)
    lengths, out = lengths_of(model, samples)
    assert lengths == list(plan.tokens) and lengths[-1] < PATCHES
    assert read and all(pair == (plan.tokens[-1],) * 2 for pair in read)
    out.loss.backward()
    tower = list(model.visual_encoder.named_parameters())
    trained = [n for n, p in tower if p.grad is not None and p.grad.any()]
    assert not trained if frozen else {n for n, p in tower if p.ndim > 1} <= set(trained)
    assert model.Qformer.bert.encoder.layer[0].crossattention.self.key.weight.grad.any()


def test_the_caption_chooses_and_can_be_given_by_hand(
    tmp_path: Path, samples: dict[str, Any]
) -> None:
    model = make(tmp_path, elip={"preset": "fast", "text_weight": 0.9})
    handle = elip_plugin.find_handle(model)
    kept = []
    for text in (CAPTIONS, OTHERS):
        with handle.trace() as trace:
            model({**samples, "text_input": list(text)})
        kept.append([stage.kept for stage in trace.stages])
    assert any(not torch.equal(a, b) for a, b in zip(*kept))
    features = model.elip_encode(model.tokenizer, list(CAPTIONS), "")[2]
    with handle.trace() as trace, handle.guide(features):
        model({**samples, "text_input": list(OTHERS)})
    assert all(torch.equal(a, stage.kept) for a, stage in zip(kept[0], trace.stages))
    with pytest.raises(GuideError, match="text features have shape"), handle.guide(features[:, :5]):
        pass


@pytest.mark.parametrize("reducer", [n for n, r in reducers().items() if not r.text_alone])
def test_every_reducer_by_the_image_alone(
    tmp_path: Path, samples: dict[str, Any], reducer: str
) -> None:
    preset = {} if "patch_embed" in reducers()[reducer].needs else {"preset": "fast"}
    model = make(tmp_path, elip={**preset, "reducer": reducer, "text_weight": 0.0})
    lengths, out = lengths_of(model, samples)
    assert lengths == list(elip_plugin.find_handle(model).plan.tokens) and out.loss.isfinite()


def test_evaluation_and_removal_are_the_base_models(
    tmp_path: Path, samples: dict[str, Any]
) -> None:
    model = make(tmp_path)
    handle = elip_plugin.find_handle(model)
    with handle.disabled():
        expected = lengths_of(model, samples)[1].loss
        features = model.eval().extract_features(samples, mode="image").image_embeds
    assert torch.equal(model.extract_features(samples, mode="image").image_embeds, features)
    handle.remove()
    assert type(model) is ARCHS["blip2"].replaces
    assert torch.equal(lengths_of(model.train(), samples)[1].loss, expected)


def test_a_forward_changes_nothing_of_lavis(tmp_path: Path, samples: dict[str, Any]) -> None:
    model = make(tmp_path)
    lengths_of(model, samples)  # what is imported late is there
    before, found = attributes(), []
    model.ln_vision.register_forward_hook(lambda *_: found.append(changes(before)))
    lengths_of(model, samples)
    assert found == [[]]


def test_evaluation_by_the_image(tmp_path: Path, samples: dict[str, Any]) -> None:
    model = make(tmp_path, elip={"preset": "half", "eval_mode": "image"}).eval()
    with recorded_lengths(model.visual_encoder.blocks) as lengths:
        model.extract_features(samples, mode="image")
    assert lengths == list(elip_plugin.find_handle(model).plan.tokens)


def test_matching_prunes_by_its_text_at_test(tmp_path: Path, samples: dict[str, Any]) -> None:
    elip = {"preset": "fast", "eval_mode": "text"}
    same = {**samples, "text_input": ["a red cat"] * len(CAPTIONS)}  # it pads no text
    model = make(tmp_path, "blip2_image_text_matching", elip).eval()
    plan = list(elip_plugin.find_handle(model).plan.tokens)
    assert lengths_of(model, same)[0] == plan
    assert lengths_of(model, same, match_head="itc")[0] == FULL
    with pytest.raises(ConfigError, match="leak it into the scores"):
        make(tmp_path, "blip2", elip)


class Language:
    """A small T5 in the place of the one that LAVIS fetches."""

    def __init__(self, module: Any, vocabulary: Path) -> None:
        transformers = pytest.importorskip("transformers")
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 2}
        config = transformers.T5Config(vocab_size=200, decoder_start_token_id=0, **sizes)
        language = module.T5ForConditionalGeneration(config)
        made = {
            "T5TokenizerFast": transformers.BertTokenizer(str(vocabulary)),
            "T5Config": config,
            "T5ForConditionalGeneration": language,
        }
        self.parts = {
            name: SimpleNamespace(from_pretrained=mock.Mock(return_value=value))
            for name, value in made.items()
        }


def fail(*_: Any, **__: Any) -> Any:
    raise OSError("no network")


@pytest.mark.parametrize("arch", ["blip2_t5", "blip2_t5_instruct"])
def test_a_language_model_reads_the_kept_tokens(
    tmp_path: Path, samples: dict[str, Any], arch: str
) -> None:
    if arch not in ARCHS:
        pytest.skip("this LAVIS has no InstructBLIP")
    module: Any = importlib.import_module(f"lavis.models.blip2_models.{arch}")
    alone = {"preset": "fast", "text_weight": 0.0}
    with (
        mock.patch.object(module, "T5TokenizerFast", SimpleNamespace(from_pretrained=fail)),
        pytest.raises(ConfigError, match=r"could not be fetched \(no network\); .*t5_model"),
    ):
        make(tmp_path, arch, alone)
    with mock.patch.multiple(module, **Language(module, tmp_path / "vocab.txt").parts):
        model = make(tmp_path, arch, alone).float()
        lengths, out = lengths_of(model, samples)
        assert lengths == list(elip_plugin.find_handle(model).plan.tokens)
        assert lengths[-1] < PATCHES
        out["loss"].backward()
        assert model.Qformer.bert.encoder.layer[0].crossattention.self.key.weight.grad.any()
        by_text = {"preset": "fast", "text_weight": 0.9, "eval_mode": "text"}
        if arch == "blip2_t5":
            with pytest.raises(ConfigError, match="set text_weight 0"):
                make(tmp_path, arch, {**by_text, "eval_mode": "full"})
            return
        model = make(tmp_path, arch, by_text).float().eval()
    handle, kept = elip_plugin.find_handle(model), []
    for prompt in (CAPTIONS, OTHERS):  # the instruction chooses, also where answers are written
        with handle.trace() as trace:
            model.generate({**samples, "prompt": list(prompt)}, num_beams=1, max_length=3)
        kept.append([stage.kept for stage in trace.stages])
    assert kept[0] and any(not torch.equal(a, b) for a, b in zip(*kept))


def test_checkpointing_gives_the_same_gradients(tmp_path: Path, samples: dict[str, Any]) -> None:
    gradients = []
    for checkpointed in (False, True):
        model = make(tmp_path, freeze_vit=False, use_grad_checkpoint=checkpointed)
        lengths_of(model, samples)[1].loss.backward()
        gradients.append(model.visual_encoder.blocks[3].attn.qkv.weight.grad)
    torch.testing.assert_close(*gradients)


def test_a_frozen_towers_step_is_counted_as_its_forward(tmp_path: Path) -> None:
    frozen, trained = (make(tmp_path, elip=None, freeze_vit=freeze) for freeze in (True, False))
    pruner = find_pruner(frozen)
    assert pruner.config == elip_plugin.ElipConfig.preset("fast")
    assert pruner.step_cost(pruner.plan) == pruner.plan.forward_cost(48)
    assert find_pruner(trained).step_cost(pruner.plan) == pruner.plan.train_cost(48)
    with pytest.warns(UserWarning, match="counted at 1.* of an unpruned training step"):
        make(tmp_path, elip="paper")


@pytest.mark.parametrize("arch", ["blip2", "blip2_feature_extractor", "blip2_image_text_matching"])
def test_vit_g_is_planned_without_weights(arch: str) -> None:
    made = create(f"elip_{arch}", device="meta")
    assert made.grid_size == (16, 16) and all(p.is_meta for p in made.model.parameters())
    assert find_pruner(made.model).plan.depth == 39


def test_it_is_measured_beside_the_unpruned_model(tmp_path: Path) -> None:
    model = make(tmp_path, elip={"preset": "fast", "text_weight": 0.5})
    processor = BlipImageEvalProcessor(image_size=SIDE)
    made = LavisModel("blip2", model, (4, 4), (0.5,) * 3, (0.5,) * 3, "", processor=processor)
    _, rows = measure_speed(made, variants=["full", "half"], batch=2, rounds=1)
    assert len(rows) == 6 and all(row.seconds > 0 for row in rows)
    flops = {(row.measured, row.variant): row.flops for row in rows}
    for measured in ("inference", "tower", "step"):
        assert flops[measured, "half"] < flops[measured, "full"]
    assert flops["tower", "full"] == flops["inference", "full"]  # a frozen tower has no backward


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="dropout"):
        model = make(tmp_path)
        elip_plugin.find_handle(model).remove()
        model.visual_encoder.blocks[5].attn.proj_drop.p = 0.1
        elip_plugin.apply(model, "fast")
    with pytest.raises(ConfigError, match=r"bert: \['hiden_size'\] not known"):
        make(tmp_path, bert={**SIZES["bert"], "hiden_size": 16})
    with pytest.raises(ConfigError, match="vit gives the tower its own sizes"):
        make(tmp_path, init=None)
