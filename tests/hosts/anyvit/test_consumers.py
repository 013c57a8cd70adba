"""Models around a tower: pruned with outputs of the same shapes, or refused beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

import elip_plugin
from benchmarks.faults.counting import tried
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.swap import find_patched

hf = pytest.importorskip("transformers", minversion="5")

from hosts.transformers.tiny import NO_DROPOUT, TEXT, VISION  # noqa: E402

SIX = {**VISION, "num_hidden_layers": 6}
ENCODER: dict[str, Any] = {**SIX, **NO_DROPOUT}
FOUR = ["stage1", "stage2", "stage4", "stage6"]
NECK = {"neck_hidden_sizes": [16] * 4, "fusion_hidden_size": 16}
ALL_TOKENS = "needs all tokens of its vision tower"
A_PLACE_EACH = ""
"""Reads a token of each patch: pruned where they merge, and get theirs back."""
DROPPING: Mapping[str, Any] = {"reducer": "random", "preset": "fast", "eval_mode": "image"}
MERGING: Mapping[str, Any] = {"preset": "half", "eval_mode": "image"}
READS_PLACES = ("ViTForMaskedImageModeling", "OwlViTForObjectDetection")


def _vit(name: str, config: str, **options: Any) -> Callable[[], Any]:
    return lambda: getattr(hf, name)(getattr(hf, config)(**{**ENCODER, **options}))


def _dual(name: str, config: str, **options: Any) -> Callable[[], Any]:
    sizes = {"text_config": TEXT, "vision_config": SIX, "projection_dim": 32, **options}
    return lambda: getattr(hf, name)(getattr(hf, config)(**sizes))


def _backbone(**options: Any) -> Any:
    return hf.Dinov2Config(**ENCODER, out_features=FOUR, **options)


def _pose() -> Any:
    sizes = {"image_size": [64, 64], "patch_size": [8, 8], "out_features": ["stage6"]}
    backbone = hf.VitPoseBackboneConfig(
        hidden_size=48, num_hidden_layers=6, num_attention_heads=4, **sizes
    )
    return hf.VitPoseForPoseEstimation(hf.VitPoseConfig(backbone_config=backbone))


MODELS: Mapping[str, tuple[Callable[[], Any], str]] = {
    "Dinov2Model": (_vit("Dinov2Model", "Dinov2Config"), ""),
    "Dinov2WithRegistersModel": (
        _vit("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig"), "",
    ),
    "Dinov2ForImageClassification": (_vit("Dinov2ForImageClassification", "Dinov2Config"), ""),
    "Dinov2Backbone": (_vit("Dinov2Backbone", "Dinov2Config", out_features=FOUR), ALL_TOKENS),
    "Dinov2WithRegistersBackbone": (
        _vit("Dinov2WithRegistersBackbone", "Dinov2WithRegistersConfig", out_features=FOUR),
        ALL_TOKENS,
    ),
    "ViTForImageClassification": (_vit("ViTForImageClassification", "ViTConfig"), ""),
    "ViTForMaskedImageModeling": (
        _vit("ViTForMaskedImageModeling", "ViTConfig", encoder_stride=8), A_PLACE_EACH,
    ),
    "DeiTForImageClassificationWithTeacher": (
        _vit("DeiTForImageClassificationWithTeacher", "DeiTConfig"), "",
    ),
    "BeitForImageClassification": (_vit("BeitForImageClassification", "BeitConfig"), ""),
    "BeitForSemanticSegmentation": (
        _vit("BeitForSemanticSegmentation", "BeitConfig", out_indices=[1, 2, 3, 5]), ALL_TOKENS,
    ),
    "ViTMAEForPreTraining": (_vit("ViTMAEForPreTraining", "ViTMAEConfig"), "random"),
    "CLIPForImageClassification": (_dual("CLIPForImageClassification", "CLIPConfig"), ""),
    "SiglipForImageClassification": (_dual("SiglipForImageClassification", "SiglipConfig"), ""),
    "OwlViTModel": (_dual("OwlViTModel", "OwlViTConfig"), ""),
    "OwlViTForObjectDetection": (_dual("OwlViTForObjectDetection", "OwlViTConfig"), A_PLACE_EACH),
    "CLIPSegForImageSegmentation": (
        _dual(
            "CLIPSegForImageSegmentation", "CLIPSegConfig", extract_layers=[1, 3], reduce_dim=16,
            decoder_num_attention_heads=2, decoder_intermediate_size=32,
        ),
        ALL_TOKENS,
    ),
    "DPTForDepthEstimation": (
        lambda: hf.DPTForDepthEstimation(
            hf.DPTConfig(
                backbone_config=_backbone(reshape_hidden_states=False),
                use_pretrained_backbone=False, reassemble_factors=[4, 2, 1, 0.5], **NECK,
            )
        ),
        ALL_TOKENS,
    ),
    "DepthAnythingForDepthEstimation": (
        lambda: hf.DepthAnythingForDepthEstimation(
            hf.DepthAnythingConfig(
                backbone_config=_backbone(reshape_hidden_states=False), patch_size=8,
                reassemble_hidden_size=48, head_hidden_size=8, **NECK,
            )
        ),
        ALL_TOKENS,
    ),
    "UperNetForSemanticSegmentation": (
        lambda: hf.UperNetForSemanticSegmentation(
            hf.UperNetConfig(
                backbone_config=_backbone(), hidden_size=32, auxiliary_in_channels=48
            )
        ),
        ALL_TOKENS,
    ),
    "VitPoseForPoseEstimation": (_pose, ALL_TOKENS),
}  # fmt: skip


def shapes(output: Any) -> dict[str, Any]:
    found = {n: value.shape for n, value in output.items() if isinstance(value, torch.Tensor)}
    assert found
    return found


@pytest.mark.parametrize("name", MODELS)
def test_a_model_around_a_tower_has_outputs_of_the_same_shapes_or_is_refused(name: str) -> None:
    make, refusal = MODELS[name]
    tried("models around a tower")
    torch.manual_seed(0)
    model = make().eval()
    inputs = {"pixel_values": torch.randn(2, 3, 64, 64)}
    if name.startswith(("OwlViT", "CLIPSeg")):
        inputs["input_ids"] = torch.randint(3, 90, (2, 16))
    with torch.no_grad():
        expected = model(**inputs)
        if refusal:
            with pytest.raises(UnsupportedModelError, match=refusal):
                elip_plugin.apply(model, MERGING)
            assert not any(True for _ in find_patched(model))
            found = model(**inputs)
            assert all(
                torch.equal(found[key], value)
                for key, value in expected.items()
                if isinstance(value, torch.Tensor) and "MAE" not in name
            )
        else:
            if name in READS_PLACES:
                with pytest.raises(UnsupportedModelError, match="use a reducer that merges"):
                    elip_plugin.apply(model, DROPPING)
                assert not any(True for _ in find_patched(model))
            else:
                elip_plugin.apply(model, DROPPING).remove()
            elip_plugin.apply(model, MERGING)
            assert shapes(model(**inputs)) == shapes(expected)


STAGE = {"block": 1, "lookahead": 1}


class Maps(torch.nn.Module):
    """A head that makes maps of any number of tokens, in silence."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.tower(pixel_values=images).last_hidden_state
        return tokens.reshape(len(images), 3, -1, 16)


class Unused(torch.nn.Module):
    """A model that runs the layers of its tower by itself."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.tower.embeddings(images)
        for i in range(len(self.tower.encoder.layer)):
            x = self.tower.encoder.layer._modules[str(i)](x)
        return x.mean(dim=1)


@pytest.mark.parametrize(
    ("head", "refusal"), [(Maps, "its output tensor has the shape"), (Unused, "does not run")]
)
def test_other_shapes_and_another_forward_are_refused(head: Any, refusal: str) -> None:
    # 66 tokens, and 33 of them.
    registers = {"num_register_tokens": 1, "num_hidden_layers": 4}
    config = hf.Dinov2WithRegistersConfig(**{**ENCODER, **registers})
    model = head(hf.Dinov2WithRegistersModel(config))
    with pytest.raises(UnsupportedModelError, match=refusal):
        elip_plugin.apply(model, {"reducer": "random", "stages": [{**STAGE, "keep": 0.5}]})
