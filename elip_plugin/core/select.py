"""Select the tokens to keep (paper, section 3). Shapes: B batch, P prefix, T tokens, K kept."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

WEIGHT_FLOOR = 1e-6
"""Added to the sum of the dropped scores, as in the paper's code."""


class Selection(NamedTuple):
    """A decision about the non-prefix tokens, counted from the first one.

    Attributes:
        kept: Indices kept [B, K], increasing.
        dropped: Indices dropped [B, M], best first.
        weights: Merge weights of the dropped [B, M], float32 or wider; None drops them unmerged.
        valid: Which of those kept are real [B, K], in a batch with padding, whose images keep
            different numbers; None where all are.
    """

    kept: Tensor
    dropped: Tensor
    weights: Tensor | None
    valid: Tensor | None = None


class Limits(NamedTuple):
    """What differs from image to image in a batch with padding.

    Attributes:
        valid: Which non-prefix tokens are real [B, T - P].
        keep: How many of them each image keeps [B].
    """

    valid: Tensor
    keep: Tensor


def select(
    scores: Tensor,
    keep: int,
    ranked_by: Tensor | None = None,
    limits: Limits | None = None,
    normalise: bool = True,
) -> Selection:
    """Select the tokens to keep; equal scores favour the earlier token.

    Args:
        scores: One score per non-prefix token [B, T - P].
        keep: How many to keep, K; with `limits` the most that an image keeps.
        ranked_by: What decides in place of the scores [B, T - P], which then are the merge
            weights only.
        limits: What differs from image to image; None without padding.
        normalise: Whether the merge weights of an image shall have the sum 1.

    Returns:
        The selection.
    """
    ranks = scores if ranked_by is None else ranked_by
    if limits is not None:
        ranks = ranks.masked_fill(~limits.valid, -torch.inf)
    best = ranks.sort(dim=1, descending=True, stable=True)
    if limits is not None:
        kept, dropped, weights, valid = _select_within(limits, best.indices, keep, scores)
    else:
        kept, dropped = best.indices[:, :keep].sort(dim=1).values, best.indices[:, keep:]
        weights = best.values[:, keep:] if ranked_by is None else scores.gather(1, dropped)
        valid = None
    if normalise:
        weights = weights / (weights.sum(dim=1, keepdim=True) + WEIGHT_FLOOR)
    return Selection(kept, dropped, weights, valid)


def _select_within(
    limits: Limits, order: Tensor, keep: int, scores: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Select by an order, padding last; those kept come first, then what fills the places.

    What one image keeps is among what another one drops, so all are listed as dropped, and those
    that are not have the weight 0.
    """
    place = torch.arange(order.shape[1], device=order.device)
    stays = place < limits.keep.unsqueeze(1)
    first, valid = order[:, :keep], stays[:, :keep]
    late = torch.where(valid, first, order.shape[1] + place[:keep])
    kept = first.gather(1, late.argsort(dim=1))
    real = place < limits.valid.sum(dim=1, keepdim=True)
    return kept, order, scores.gather(1, order).masked_fill(stays | ~real, 0), valid
