"""A model of METER's kind, built by a user: its vision tower is found, the text guides by hand.

METER has the vision tower of CLIP, without projection, a text encoder of RoBERTa's kind, and layers
in which text and image read each other. The classes are our own; only their form is METER's.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import recorded_lengths
from hosts.anyvit.test_found import same, state_of
from hosts.anyvit.vits import HEADS, PATCH, PATCHES, SIDE, WIDTH, Gelu, HalfNorm
from torch import Tensor, nn

import elip_plugin
from elip_plugin.core.guide import project_to_vision_width
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.reducers import reducers

JOINT, WORDS = 24, 7
BOTH = {"batch_first": True, "dropout": 0.0}


class VisionBlock(nn.Module):
    """As CLIP's, with a mask of patches for torch's attention."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm_a = nn.MultiheadAttention(WIDTH, HEADS), HalfNorm(WIDTH)
        self.norm_b = HalfNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 64), Gelu(), nn.Linear(64, WIDTH))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.norm_a(x)
        x = x + self.attention(y, y, y, need_weights=False, key_padding_mask=mask)[0]
        return x + self.mlp(self.norm_b(x))


class VisionTower(nn.Module):
    """Gives all tokens, normalised; one block fewer than CLIP's."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.first, self.places = (nn.Parameter(torch.randn(n, WIDTH)) for n in (1, PATCHES + 1))
        self.norm_in, self.norm_out = HalfNorm(WIDTH), HalfNorm(WIDTH)
        self.blocks = nn.Sequential(*(VisionBlock() for _ in range(11)))

    def forward(self, images: Tensor, mask: Tensor | None) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(len(x), -1, -1), x], dim=1) + self.places
        x = self.norm_in(x).transpose(0, 1)
        for block in self.blocks:
            x = block(x, mask)
        return self.norm_out(x.transpose(0, 1))


class Vision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = VisionTower()

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Any:
        return self.visual(images, mask)


class TextEncoder(nn.Module):
    """Normalises after each part, as RoBERTa does."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(100, WIDTH), nn.Embedding(WORDS, WIDTH)
        layers = (nn.TransformerEncoderLayer(WIDTH, 2, 64, **BOTH) for _ in range(3))  # type: ignore[arg-type]
        self.layers = nn.ModuleList(layers)

    def forward(self, text: Tensor) -> Any:
        x = self.words(text) + self.places.weight
        for layer in self.layers:
            x = layer(x)
        return x


class Meter(nn.Module):
    """Text and image read each other; both first tokens are classified."""

    def __init__(self) -> None:
        super().__init__()
        self.vit_model, self.text_encoder = Vision(), TextEncoder()
        self.image_transform, self.text_transform = (nn.Linear(WIDTH, JOINT) for _ in range(2))
        self.kinds = nn.Embedding(2, JOINT)
        self.image_layers, self.text_layers = (
            nn.ModuleList(nn.TransformerDecoderLayer(JOINT, 2, 48, **BOTH) for _ in range(2))  # type: ignore[arg-type]
            for _ in range(2)
        )
        self.classifier = nn.Linear(2 * JOINT, 5)

    def forward(self, images: Tensor, text: Tensor) -> Any:
        x = self.text_transform(self.text_encoder(text)) + self.kinds.weight[0]
        y = self.image_transform(self.vit_model(images)) + self.kinds.weight[1]
        for text_layer, image_layer in zip(self.text_layers, self.image_layers):
            x, y = text_layer(x, y), image_layer(y, x)
        return self.classifier(torch.cat([x[:, 0], y[:, 0]], dim=1))


def make() -> Any:
    torch.manual_seed(0)
    return Meter().train()


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, SIDE, SIDE), torch.randint(100, (2, WORDS))


def guide_of(model: Any, text: Tensor) -> Tensor:
    """The text's first token in the joint width, and from there to the tower's: by hand."""
    with torch.no_grad():
        feature = model.text_transform(model.text_encoder(text)[:, 0])
        return project_to_vision_width(feature, [model.image_transform.weight])


def test_its_tower_is_found_and_its_text_layers_are_not() -> None:
    model = make()
    before = state_of(model)
    tower = elip_plugin.describe(model).tower
    assert tower.block_list is model.vit_model.visual.blocks
    assert tower.shape.num_patches == PATCHES and tower.shape.depth == 11
    assert tower.module.get_submodule(tower.patch_embed) is model.vit_model.visual.patches
    assert same(state_of(model), before)


@pytest.mark.parametrize("reducer", list(reducers()))
def test_a_training_step_guided_by_its_text(reducer: str) -> None:
    model, (images, text) = make(), batch()
    unpruned = model(images, text)
    preset = {} if "stages" in reducers()[reducer].plan else {"preset": "fast"}
    handle = elip_plugin.apply(model, {**preset, "reducer": reducer})
    blocks = model.vit_model.visual.blocks
    with recorded_lengths(blocks, dim=0) as lengths, handle.guide(guide_of(model, text)):
        out = model(images, text)
    out.square().sum().backward()
    assert lengths == list(handle.plan.tokens) and lengths[-1] < PATCHES
    assert out.shape == unpruned.shape and not torch.equal(out, unpruned)
    assert blocks[0].attention.in_proj_weight.grad.abs().sum() > 0
    handle.remove()
    assert torch.equal(model(images, text), unpruned)


def test_a_mask_of_patches_is_refused_while_pruning() -> None:
    model, (images, _) = make(), batch()
    handle = elip_plugin.apply(model, "half")
    mask = torch.zeros(2, PATCHES + 1, dtype=torch.bool)
    with pytest.raises(UnsupportedModelError, match="given a mask, or another tensor"):
        model.vit_model(images, mask)
    with handle.disabled():
        assert model.vit_model(images, mask).shape == (2, PATCHES + 1, WIDTH)


def test_another_text_chooses_other_patches() -> None:
    model, (images, text) = make(), batch()
    handle = elip_plugin.apply(model, {"preset": "fast", "text_weight": 0.9})
    kept = []
    for words in (text, text.flip(1)):
        with handle.guide(guide_of(model, words)), handle.trace() as trace:
            model(images, words)
        kept.append(trace.stages[-1].kept)
    assert not torch.equal(*kept)
