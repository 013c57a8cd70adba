"""A small CLIP of OpenCLIP's classes, to train and score."""

from __future__ import annotations

from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import Tensor

from elip_plugin.quality.recipe import SIDE, Recipe

CONTEXT = 24
HEAD = 32


class ClipTrial:
    """OpenCLIP's model, loss and tokenizer.

    Args:
        recipe: Sizes of the model.
        captions: Those of the training split.
        others: Those of the held-out split.
    """

    def __init__(self, recipe: Recipe, captions: list[str], others: list[str]) -> None:
        self.tokenize = open_clip.get_tokenizer("ViT-B-32", context_length=CONTEXT)
        raw = self.tokenize([*captions, *others])
        # Only the ids that occur: an embedding of all 49,408 would be most of the weights. The
        # end token stays the highest, by which the text tower finds it.
        self.known = raw.unique()
        self.tokens = torch.searchsorted(self.known, raw[: len(captions)])
        width, heads = recipe.width, recipe.width // HEAD
        self.model = CLIP(
            embed_dim=width,
            vision_cfg={
                "image_size": SIDE, "patch_size": recipe.patch, "layers": recipe.depth,
                "width": width, "head_width": HEAD,
            },
            text_cfg={
                "context_length": CONTEXT, "vocab_size": len(self.known), "width": width,
                "heads": heads, "layers": recipe.text_depth,
            },
            output_dict=True,
        )  # fmt: skip
        self.criterion = open_clip.ClipLoss()

    def loss(self, images: Tensor, which: Tensor, progress: float) -> Tensor:
        """Run the training forward; see `elip_plugin.quality.trial.Trial`.

        Args:
            images: Images [B, 3, side, side].
            which: The pairs' places in the training split [B].
            progress: Not needed here.

        Returns:
            The contrastive loss.
        """
        model: Any = self.model
        given = images, self.tokens[which]
        if images.shape[-1] == SIDE:
            return self.criterion(**model(*given))
        positions = _resized(model.visual.positional_embedding, images.shape[-1] / SIDE)
        changed = {"visual.positional_embedding": positions}
        return self.criterion(**torch.func.functional_call(model, changed, given))

    def guide(self, which: Tensor) -> Tensor:
        """Encode captions of the training split.

        Args:
            which: Their places [B].

        Returns:
            Text features [B, E], without gradient.
        """
        model: Any = self.model
        with torch.no_grad():
            return model.encode_text(self.tokens[which], normalize=True)

    def features(self, images: Tensor, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Encode images and captions for retrieval.

        Args:
            images: Images [B, 3, 64, 64].
            captions: Their captions.

        Returns:
            Features of both, [B, E] each.
        """
        model: Any = self.model.eval()
        tokens = torch.searchsorted(self.known, self.tokenize(captions))
        with torch.no_grad():
            return model.encode_image(images), model.encode_text(tokens)

    def scale(self) -> float:
        """Tell the model's factor on cosines.

        Returns:
            The factor.
        """
        model: Any = self.model
        return model.logit_scale.exp().item()


def _resized(positions: Tensor, ratio: float) -> Tensor:
    """Interpolate positions [1 + N, D] for images of another size; gradient flows."""
    side = round((len(positions) - 1) ** 0.5)
    grid = positions[1:].t().reshape(1, -1, side, side)
    grid = F.interpolate(grid, size=round(side * ratio), mode="bicubic", align_corners=False)
    return torch.cat([positions[:1], grid.flatten(2)[0].t()])


trial = ClipTrial
