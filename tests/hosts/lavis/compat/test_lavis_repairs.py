"""What the package repairs of LAVIS, on LAVIS as published, with tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest

pytest.importorskip("lavis")

import torch
import torch.nn.functional as F
from lavis.common.registry import registry
from lavis.models import med, vit
from lavis_runs import model_section, write_data
from omegaconf import OmegaConf
from torch import nn
from transformers import BertConfig, PreTrainedModel

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def section(arch: str, data: Path, **more: Any) -> dict[str, Any]:
    types = {"albef_retrieval": "flickr", "albef_nlvr": "nlvr", "albef_vqa": "vqav2"}
    more = {"queue_size": 8, "pretrained": None, "load_finetuned": False, "num_classes": 3, **more}
    keys = model_section(f"elip_{arch}", data, **more)
    return {**keys, "model_type": types.get(arch, "base")}


def build(arch: str, data: Path, **more: Any) -> Any:
    torch.manual_seed(0)
    keys = section(arch, data, **more)
    cls = registry.get_model_class(keys["arch"])
    default = OmegaConf.load(cls.default_config_path(keys["model_type"])).model
    return cls.from_config(OmegaConf.merge(default, keys)).train()


def samples() -> dict[str, Any]:
    image, image0, image1 = torch.randn(3, 4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    return {
        "image": image,
        "image0": image0,
        "image1": image1,
        "text_input": ["a red thing", "the blue table", "a dark door", "a pale and flat thing"],
        "label": torch.tensor([0, 1, 0, 1]),
        "answer": ["red", "blue", "a dark door", "pale"],
        "n_answers": torch.tensor([1, 1, 1, 1]),
        "weight": torch.ones(4),
        "epoch": 1,
        "iters": 1,
        "num_iters_per_epoch": 4,
    }


def learns(model: Any) -> Any:
    """Assert that a step gives a finite loss and gradients in the tower; return the output."""
    output = model(samples())
    output["loss"].backward()
    assert torch.isfinite(output["loss"])
    tower = model.visual if hasattr(model, "visual") else model.visual_encoder
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in tower.parameters())
    return output


@pytest.mark.parametrize("arch", ["albef_pretrain", "albef_nlvr"])
def test_it_learns_beside_fewer_momentum_tokens(arch: str, data: Path) -> None:
    model = build(arch, data)
    model.visual_encoder_m.register_forward_hook(lambda module, args, output: output[:, :5])
    learns(model)


def test_a_checkpointed_momentum_encoder_has_its_weights(data: Path) -> None:
    """Checkpointing changes no gradient, and the momentum encoder runs its own weights."""
    calls: list[Any] = []
    inner = vit.Attention.forward

    def counted(self: Any, *args: Any, **options: Any) -> Any:
        calls.append(self)
        return inner(self, *args, **options)

    image, plain = samples()["image"], build("albef_pretrain", data)
    with mock.patch.object(vit.Attention, "forward", counted):
        model = build("albef_pretrain", data, vit_grad_ckpt=True, vit_ckpt_layer=12)
        with torch.no_grad():
            for weight in model.visual_encoder.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
        plain.load_state_dict(model.state_dict())
        model.visual_encoder(image).square().sum().backward()
        assert len(calls) == 24  # 12 blocks, each a second time in backward
        plain.visual_encoder(image).square().sum().backward()
    towers = model.visual_encoder.parameters(), plain.visual_encoder.parameters()
    for left, right in zip(*towers):
        assert (left.grad is None) == (right.grad is None)
        if left.grad is not None:
            torch.testing.assert_close(left.grad, right.grad)
    with torch.no_grad():
        theirs, own = model.visual_encoder_m(image), plain.visual_encoder_m(image)
    assert torch.equal(theirs, own), "the twin runs the weights of the other tower"


def test_clip_has_a_loss(data: Path) -> None:
    """In one process, without a process group."""
    torch.manual_seed(0)
    keys = model_section("elip_clip", data)
    model = registry.get_model_class("elip_clip").from_config(keys)
    output = learns(model.train())
    features = output.intermediate_output
    logits = output.logit_scale_exp * features.image_embeds_proj @ features.text_embeds_proj.T
    order = torch.arange(len(logits))
    own = (F.cross_entropy(logits, order) + F.cross_entropy(logits.T, order)) / 2
    torch.testing.assert_close(output.loss, own)


def test_nlvr_loads(data: Path, tmp_path: Path) -> None:
    """Pre-trained weights without a momentum encoder load, and it becomes their copy."""
    made = build("albef_nlvr", data).state_dict()
    state = {k: v + v.is_floating_point() for k, v in made.items() if "_m." not in k}
    torch.save({"model": state}, tmp_path / "nlvr.pth")
    model = build("albef_nlvr", data, pretrained=str(tmp_path / "nlvr.pth"))
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, state[name.replace("_m.", ".", 1)]), name


def test_blip_classifies(data: Path) -> None:
    output = learns(build("blip_classification", data))
    assert output.intermediate_output.encoder_output_m is not None


def test_a_language_head_keeps_its_bias(data: Path, tmp_path: Path) -> None:
    """LAVIS' language heads keep their bias when published weights load."""
    keys: Any = section("albef_pretrain", data)["bert"]
    config: Any = BertConfig(**keys, num_hidden_layers=1, vocab_size=30)
    config.update({"fusion_layer": 1, "encoder_width": 32})
    config.update({"add_cross_attention": False, "add_type_embeddings": False})
    head = med.BertForMaskedLM(config)
    nn.init.ones_(head.cls.predictions.bias)
    head.save_pretrained(tmp_path / "head", safe_serialization=False)
    load: Any = PreTrainedModel.from_pretrained
    loaded = load.__func__(med.BertForMaskedLM, str(tmp_path / "head"), config=config)
    predictions = loaded.cls.predictions
    assert predictions.decoder.bias is predictions.bias and bool((predictions.bias == 1).all())
