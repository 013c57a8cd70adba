"""Small vision transformers of no known host, and how each is run."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

WIDTH, HEADS, DEPTH, SIDE, PATCH = 32, 2, 12, 64, 8
PATCHES = (SIDE // PATCH) ** 2


class HalfNorm(nn.LayerNorm):
    """Normalises in float32, whatever the tokens are."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(torch.float32)).to(x.dtype)


class Gelu(nn.Module):
    """The approximation of OpenAI's models."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1.702 * x).sigmoid()


class ClipBlock(nn.Module):
    """A block of the kind of OpenAI's `clip`: tokens [T, B, D], torch's own attention."""

    def __init__(self, mask: Tensor | None = None) -> None:
        super().__init__()
        self.attn, self.attn_mask = nn.MultiheadAttention(WIDTH, HEADS), mask
        self.ln_1, self.ln_2 = HalfNorm(WIDTH), HalfNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 64), Gelu(), nn.Linear(64, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=self.attn_mask)[0]
        return x + self.mlp(self.ln_2(x))


class ClipEncoder(nn.Module):
    def __init__(self, mask: Tensor | None = None) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(ClipBlock(mask) for _ in range(DEPTH)))

    def forward(self, x: Tensor) -> Any:
        return self.resblocks(x)


class ClipVision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.positional_embedding = nn.Parameter(torch.randn(PATCHES + 1, WIDTH))
        self.ln_pre, self.transformer, self.ln_post = (
            HalfNorm(WIDTH),
            ClipEncoder(),
            HalfNorm(WIDTH),
        )
        self.proj = nn.Parameter(torch.randn(WIDTH, 24))

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv1(images).flatten(2).transpose(1, 2)
        first = self.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        x = self.ln_pre(torch.cat([first, x], dim=1) + self.positional_embedding)
        x = self.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)
        return self.ln_post(x[:, 0]) @ self.proj


class ClipModel(nn.Module):
    """A model of the kind of OpenAI's `clip`, whose text encoder has the same blocks."""

    def __init__(self) -> None:
        super().__init__()
        causal = torch.full((9, 9), float("-inf")).triu(1)
        self.visual, self.transformer = ClipVision(), ClipEncoder(causal)
        self.token_embedding, self.ln_final = nn.Embedding(100, WIDTH), HalfNorm(WIDTH)
        self.text_projection = nn.Parameter(torch.randn(WIDTH, 24))

    def encode_image(self, images: Tensor) -> Any:
        return self.visual(images)

    def encode_text(self, text: Tensor) -> Tensor:
        x = self.transformer(self.token_embedding(text).transpose(0, 1)).transpose(0, 1)
        return self.ln_final(x)[:, -1] @ self.text_projection

    def forward(self, images: Tensor, text: Tensor) -> Tensor:
        return self.encode_image(images) @ self.encode_text(text).t()


class TorchVit(nn.Module):
    """torch's own encoder, which reads attributes of its first layer; no class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.places = nn.Parameter(torch.randn(PATCHES, WIDTH))
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, DEPTH, nn.LayerNorm(WIDTH), enable_nested_tensor=False
        )

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2) + self.places
        return self.encoder(x).mean(dim=1)


class Case(NamedTuple):
    """A model and how it is run.

    Attributes:
        make: Makes the model.
        encode: From the model and images [B, 3, 64, 64] to features.
        blocks: The list of its blocks.
        prefix: Prefix tokens.
        dim: Dimension of a block's input that counts tokens.
        guide: Width of what guides it: the tower's, or that of features that its host projects.
    """

    make: Callable[[], Any]
    encode: Callable[[Any, Tensor], Tensor]
    blocks: Callable[[Any], Any]
    prefix: int
    dim: int = 1
    guide: int = WIDTH


def openai_clip() -> Any:
    """OpenAI's own class; the package itself imports `pkg_resources`, which may not be there."""
    if "clip" not in sys.modules:
        found = find_spec("clip")
        if found is None or found.submodule_search_locations is None:
            pytest.skip("clip-anytorch is not installed")
        package = sys.modules["clip"] = ModuleType("clip")
        package.__path__ = found.submodule_search_locations
    models: Any = importlib.import_module("clip.model")
    model = models.CLIP(24, SIDE, DEPTH, 64, PATCH, 9, 100, WIDTH, 1, 2)
    model.visual = models.VisionTransformer(SIDE, PATCH, WIDTH, DEPTH, HEADS, 24)
    return model


def torchvision_vit() -> Any:
    vision = pytest.importorskip("torchvision.models.vision_transformer")
    return vision.VisionTransformer(SIDE, PATCH, DEPTH, HEADS, WIDTH, 64, num_classes=10)


def timm_vit(name: str) -> Any:
    timm = pytest.importorskip("timm", "1.0")  # older ones do not take another patch size
    sizes = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": WIDTH, "num_heads": HEADS}
    return timm.create_model(name, **sizes, num_classes=10)


VISION = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "image_size": SIDE,
    "patch_size": PATCH,
}


def transformers_vit(kind: str, model: str = "Model", **options: Any) -> Any:
    hf = pytest.importorskip("transformers", "4.57")
    config = getattr(hf, f"{kind}Config")(**VISION, intermediate_size=64, **options)
    return getattr(hf, kind + model)(config)


def dual(kind: str) -> Any:
    hf = pytest.importorskip("transformers", "4.57")
    text = hf.BertConfig(
        hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        vocab_size=100, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    vision = getattr(hf, f"{kind}Config")(**VISION, intermediate_size=64)
    both = hf.VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=24)
    return hf.VisionTextDualEncoderModel(both)


def layers_of(tower: Any) -> Any:
    """The layers of a tower of transformers, in any version."""
    encoder = getattr(tower, "encoder", getattr(tower, "model", tower))
    return encoder.layer if hasattr(encoder, "layer") else encoder.layers


def call(model: Any, images: Tensor) -> Any:
    return model(images)


def pooled(model: Any, images: Tensor) -> Tensor:
    return getattr(model, "vision_model", model)(images).pooler_output


def logits(model: Any, images: Tensor) -> Tensor:
    return model(images).logits


CASES: dict[str, Case] = {
    "CLIP": Case(
        ClipModel, lambda m, x: m.encode_image(x), lambda m: m.visual.transformer.resblocks, 1, 0
    ),
    "clip-anytorch": Case(
        openai_clip, lambda m, x: m.encode_image(x), lambda m: m.visual.transformer.resblocks, 1, 0
    ),
    "torch": Case(TorchVit, call, lambda m: m.encoder.layers, 0),
    "torchvision": Case(torchvision_vit, call, lambda m: m.encoder.layers, 1),
    "timm ViT": Case(lambda: timm_vit("vit_tiny_patch16_224"), call, lambda m: m.blocks, 1),
    "timm DeiT": Case(
        lambda: timm_vit("deit_tiny_distilled_patch16_224"), call, lambda m: m.blocks, 2
    ),
    "timm DINOv2": Case(
        lambda: timm_vit("vit_small_patch14_reg4_dinov2"), call, lambda m: m.blocks, 5
    ),
    "timm average": Case(
        lambda: timm_vit("vit_medium_patch16_gap_240"), call, lambda m: m.blocks, 0
    ),
    "DINOv2": Case(lambda: transformers_vit("Dinov2"), pooled, layers_of, 1),
    "DINOv2 registers": Case(lambda: transformers_vit("Dinov2WithRegisters"), pooled, layers_of, 5),
    "DINOv3": Case(
        # In training its positions are scaled at random, by default.
        lambda: transformers_vit("DINOv3ViT", num_register_tokens=4, pos_embed_rescale=None),
        pooled,
        layers_of,
        5,
    ),
    "DeiT": Case(lambda: transformers_vit("DeiT"), pooled, layers_of, 2),
    "DeiT classifier": Case(
        lambda: transformers_vit("DeiT", "ForImageClassification"),
        logits,
        lambda m: layers_of(m.deit),
        2,
    ),
    "dual DINOv2": Case(
        lambda: dual("Dinov2"), pooled, lambda m: layers_of(m.vision_model), 1, guide=24
    ),
    "dual DeiT": Case(
        lambda: dual("DeiT"), pooled, lambda m: layers_of(m.vision_model), 2, guide=24
    ),
}


def make(name: str, seed: int = 0) -> Any:
    """Make a model in training mode; its weights are drawn wide, so that tokens differ."""
    torch.manual_seed(seed)
    model = CASES[name].make()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.1 if weight.ndim > 1 else 0.5)
    return model.train()


def images(seed: int = 1, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
