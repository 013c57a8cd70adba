"""From a text feature to a text guide: a tower's linear maps, transposed, in reverse order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from elip_plugin.core.precision import exact, wide
from elip_plugin.errors import GuideError


class TextQueries(NamedTuple):
    """The queries of a text encoder's cross-attentions, mapped to a tower's width."""

    first: Tensor  # those of the first one [B, G, D]
    # Those of the others, from the tokens after the last norm: [B, T, D] to [B, G', D].
    further: Callable[[Tensor], Tensor] | None


class TextGuide:
    """What a host guides a tower by, computed once a forward asks for it.

    A host's class has `pooled`; where a text encoder reads the tower by cross-attention it also
    has `queries`.
    """

    def pooled(self) -> Tensor:
        """Compute one guide for each image [B, D]."""
        raise NotImplementedError(f"{type(self).__name__} has no pooled guide")

    def queries(self, layers: int, gradient: bool) -> Tensor | TextQueries:
        """Compute what the text side compares the tower's tokens with; by default `pooled`.

        Args:
            layers: How many cross-attentions read the tokens, from the first.
            gradient: Whether the guide has a gradient.

        Returns:
            The guide [B, D], or how a text encoder reads.
        """
        return self.pooled()


Guide = Tensor | TextQueries | TextGuide | Callable[[], Tensor]
"""A text guide [B, D], how a text encoder reads; or what makes either once a forward needs it."""


TEMPERATURE = 0.07
"""Of the softmax over the texts of a batch; CLIP's own at the start of its training."""


def project_to_vision_width(features: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """Project text features back to a tower's width (paper, section 3.3).

    Args:
        features: Text features [B, E], of any norm.
        maps: Matrices [E, .], ..., [., D], the last map of the tower first.

    Returns:
        L2-normalized features times the maps in turn [B, D], detached.

    Raises:
        GuideError: If the features are not [B, E], or not floating-point numbers.
    """
    if features.ndim != 2 or (maps and features.shape[1] != maps[0].shape[0]):
        expected = maps[0].shape[0] if maps else "embedding width"
        raise GuideError(
            f"text features have shape {tuple(features.shape)}, but this model guides by "
            f"(batch, {expected}): pass the embeddings that it compares with images"
        )
    if not features.is_floating_point():
        raise GuideError(
            f"text features have type {features.dtype}, but must be real numbers: pass the "
            "embeddings of the texts, not their tokens"
        )
    with torch.no_grad():
        guide = F.normalize(features.detach(), dim=-1)
        for matrix in maps:
            # Detached, or autocast before torch 2.10 keeps a cast of it that has no gradient.
            guide = guide.to(matrix.dtype) @ matrix.detach()
        return guide


def check_guide(guide: Tensor, texts: int | None, width: int, *, several: bool = False) -> None:
    """Refuse a guide of another shape than [B, D].

    Args:
        guide: The guide.
        texts: How many it must be of; None for any number.
        width: Tower width D.
        several: Whether it may have several guides per image [B, G, D].

    Raises:
        GuideError: If it is not of that shape.
    """
    shape = guide.shape
    allowed = (2, 3) if several and texts is not None else (2,)
    count = len(guide) if texts is None else texts
    if len(shape) in allowed and (shape[0], shape[-1]) == (count, width) and count > 0:
        return
    rows = "texts" if texts is None else texts
    raise GuideError(
        f"the text guide has shape {tuple(guide.shape)}, but this tower and batch need "
        f"({rows}, {width}): one row per {'text' if texts is None else 'image'}, one column per "
        "tower channel"
    )


def guide_from_batch(token: Tensor, guides: Tensor) -> Tensor:
    """Compute a guide per image from texts that are not paired with the images (our extension).

    It is the mean of the texts' guides [M, D], each weighted by its similarity to the image's query
    token [B, 1, D]: a guide [B, D], detached.
    """
    queries, texts = wide(token.detach()).squeeze(1), guides.detach()
    texts = texts.to(queries.dtype)
    with torch.no_grad(), exact(queries):
        cosines = F.normalize(queries, dim=-1) @ F.normalize(texts, dim=-1).t()
        return (cosines / TEMPERATURE).softmax(dim=-1) @ texts
