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
        kept: Indices of the kept tokens [B, K], increasing.
        dropped: Indices dropped [B, M], best first.
        weights: Merge weights of the dropped [B, M], float32 or wider; None drops them unmerged.
        valid: Which of those kept are real [B, K], in a batch with padding, whose images keep
            different numbers; None where all are.
        trainable_scores: Scores [B, N] with a gradient, for a loss on the choice; mostly None.
    """

    kept: Tensor
    dropped: Tensor
    weights: Tensor | None
    valid: Tensor | None = None
    trainable_scores: Tensor | None = None


def select(
    scores: Tensor,
    keep: int,
    ranked_by: Tensor | None = None,
    valid: Tensor | None = None,
    keep_each: Tensor | None = None,
    normalise: bool = True,
) -> Selection:
    """Select the tokens to keep; equal scores favor the earlier token.

    Args:
        scores: One score per non-prefix token [B, T - P].
        keep: How many to keep, K; with padding the most that an image keeps.
        ranked_by: What decides in place of the scores [B, T - P], which then are the merge
            weights only.
        valid: Which non-prefix tokens are real [B, T - P]; None without padding.
        keep_each: How many of them each image keeps [B]; None without padding.
        normalise: Whether the merge weights of an image shall have the sum 1.

    Returns:
        The selection.
    """
    ranks = scores if ranked_by is None else ranked_by
    if valid is not None:
        ranks = ranks.masked_fill(~valid, -torch.inf)
    best = ranks.sort(dim=1, descending=True, stable=True)
    real = None
    if valid is not None and keep_each is not None:
        order = best.indices
        kept, weights, real = _select_each(order, keep, keep_each, valid.sum(dim=1), scores)
        dropped = order
    else:
        kept, dropped = best.indices[:, :keep].sort(dim=1).values, best.indices[:, keep:]
        weights = best.values[:, keep:] if ranked_by is None else scores.gather(1, dropped)
    if normalise:
        weights = weights / (weights.sum(dim=1, keepdim=True) + WEIGHT_FLOOR)
    return Selection(kept, dropped, weights, real)


def _select_each(
    order: Tensor, keep: int, keep_each: Tensor, counts: Tensor, scores: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Select in a padded batch: kept tokens, merge weights, and which of the kept are real.

    Images keep different numbers of tokens. The kept tokens of an image come first and are followed
    by tokens that only fill the row. Every token is listed as dropped; those that are kept, or are
    padding, have the merge weight 0.
    """
    place = torch.arange(order.shape[1], device=order.device)
    real = place < counts.unsqueeze(1)
    stays = (place < keep_each.unsqueeze(1)) & real
    first, valid = order[:, :keep], stays[:, :keep]
    late = torch.where(valid, first, order.shape[1] + place[:keep])
    kept = first.gather(1, late.argsort(dim=1))
    return kept, scores.gather(1, order).masked_fill(stays | ~real, 0), valid
