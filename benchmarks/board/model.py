"""A small CLIP of OpenCLIP's own class, with its loss and tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.board.recipe import SIDE, BoardRecipe

CONTEXT = 16
HEAD = 32
MOST_SCALE = 4.6052
"""Upper bound of the logarithm of the factor on cosines: ln 100, as in CLIP's paper."""


class StudyModel:
    """A CLIP to train and score.

    Args:
        recipe: Sizes of the model.
        captions: All captions that it will meet.
    """

    def __init__(self, recipe: BoardRecipe, captions: Sequence[str]) -> None:
        self.tokenizer = open_clip.get_tokenizer("ViT-B-32", context_length=CONTEXT)
        # Only the ids that occur: an embedding of all 49,408 would be most of the weights. The
        # end token stays the highest, by which the text tower finds it.
        self.known = self.tokenizer(list(captions)).unique()
        self.recipe = recipe
        self.model: Any = open_clip.CLIP(**config_of(recipe, len(self.known)), output_dict=True)
        self.criterion = open_clip.ClipLoss()

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """Return the tokens [N, CONTEXT] of captions."""
        return torch.searchsorted(self.known, self.tokenizer(list(captions)))

    def loss(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Compute the contrastive loss.

        Args:
            images: Pictures [B, 3, side, side]; of a smaller side than the model's, positions are
                interpolated.
            tokens: Tokens of their captions [B, CONTEXT].

        Returns:
            The loss.
        """
        changed = {}
        if images.shape[-1] != SIDE:
            positions = self.model.visual.positional_embedding
            name = "visual.positional_embedding"
            changed[name] = _resized(positions, images.shape[-1] / SIDE)
        out = torch.func.functional_call(self.model, changed, (images, tokens))
        loss: Tensor = self.criterion(**{key: value.float() for key, value in out.items()})
        return loss

    @torch.no_grad()
    def guide(self, tokens: Tensor) -> Tensor:
        """Encode captions as `elip_plugin.guide` takes them, [B, E]."""
        features: Tensor = self.model.encode_text(tokens, normalize=True)
        return features


def config_of(recipe: BoardRecipe, words: int) -> dict[str, Any]:
    """Return OpenCLIP's config of a model.

    Args:
        recipe: Its sizes.
        words: Size of the text tower's vocabulary.

    Returns:
        The config.
    """
    return {
        "embed_dim": recipe.width,
        "vision_cfg": {
            "image_size": SIDE, "patch_size": recipe.patch, "layers": recipe.depth,
            "width": recipe.width, "head_width": HEAD,
        },
        "text_cfg": {
            "context_length": CONTEXT, "vocab_size": words, "width": recipe.width,
            "heads": recipe.width // HEAD, "layers": recipe.text_depth,
        },
    }  # fmt: skip


def _resized(positions: Tensor, ratio: float) -> Tensor:
    """Interpolate positions [1 + N, D] for pictures of another size; gradient flows."""
    side = round((len(positions) - 1) ** 0.5)
    grid = positions[1:].t().reshape(1, -1, side, side)
    grid = F.interpolate(grid, size=round(side * ratio), mode="bicubic", align_corners=False)
    return torch.cat([positions[:1], grid.flatten(2)[0].t()])
