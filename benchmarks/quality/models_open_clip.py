"""A small CLIP of OpenCLIP's own class, with its loss and tokenizer."""

from __future__ import annotations

from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.quality.pairs import Pairs
from benchmarks.quality.recipe import SIDE, Recipe

CONTEXT = 24
HEAD = 32


class ClipModel:
    """A CLIP to train and score; see `benchmarks.quality.models.StudyModel`.

    Args:
        recipe: Sizes of the model.
        train: The training split.
        held_out: The held-out split.
    """

    def __init__(self, recipe: Recipe, train: Pairs, held_out: Pairs) -> None:
        self.tokenize = open_clip.get_tokenizer("ViT-B-32", context_length=CONTEXT)
        raw = self.tokenize([*train.captions, *held_out.captions])
        # Only the ids that occur: an embedding of all 49,408 would be most of the weights. The
        # end token stays the highest, by which the text tower finds it.
        self.known = raw.unique()
        self.tokens = torch.searchsorted(self.known, raw[: len(train)])
        self.model: Any = open_clip.CLIP(
            embed_dim=recipe.width,
            vision_cfg={
                "image_size": SIDE, "patch_size": recipe.patch, "layers": recipe.depth,
                "width": recipe.width, "head_width": HEAD,
            },
            text_cfg={
                "context_length": CONTEXT, "vocab_size": len(self.known), "width": recipe.width,
                "heads": recipe.width // HEAD, "layers": recipe.text_depth,
            },
            output_dict=True,
        )  # fmt: skip
        self.criterion = open_clip.ClipLoss()

    def loss(self, images: Tensor, which: Tensor, done: float) -> Tensor:
        """Compute the contrastive loss."""
        changed = {}
        if images.shape[-1] != SIDE:
            positions = self.model.visual.positional_embedding
            name = "visual.positional_embedding"
            changed[name] = _resized(positions, images.shape[-1] / SIDE)
        out = torch.func.functional_call(self.model, changed, (images, self.tokens[which]))
        loss: Tensor = self.criterion(**out)
        return loss

    @torch.no_grad()
    def guide(self, which: Tensor) -> Tensor:
        """Encode captions of the training split."""
        features: Tensor = self.model.encode_text(self.tokens[which], normalize=True)
        return features

    @torch.no_grad()
    def features(self, images: Tensor, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Encode images and captions for retrieval."""
        self.model.eval()
        tokens = torch.searchsorted(self.known, self.tokenize(captions))
        return self.model.encode_image(images), self.model.encode_text(tokens)

    def scale(self) -> float:
        """Return the model's factor on cosines."""
        return float(self.model.logit_scale.detach().exp())


def _resized(positions: Tensor, ratio: float) -> Tensor:
    """Interpolate positions [1 + N, D] for images of another size; gradient flows."""
    side = round((len(positions) - 1) ** 0.5)
    grid = positions[1:].t().reshape(1, -1, side, side)
    grid = F.interpolate(grid, size=round(side * ratio), mode="bicubic", align_corners=False)
    return torch.cat([positions[:1], grid.flatten(2)[0].t()])
