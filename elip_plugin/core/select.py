"""Select the tokens to keep (paper, section 3). Shapes: B batch, P prefix, T tokens, K kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from elip_plugin.core.precision import wide

WEIGHT_FLOOR = 1e-6
"""Added to the sum of the dropped scores, as in the paper's code."""


class Selection(NamedTuple):
    """A decision about the non-prefix tokens, counted from the first one.

    Attributes:
        kept: Indices of the kept tokens [B, K], increasing.
        dropped: Indices dropped [B, M], best first.
        weights: Merge weights of the dropped [B, M], float32 or wider; None drops them unmerged.
        teach: Returns the tokens after the stage as they are, so that a backward pass teaches the
            choice; mostly None.
    """

    kept: Tensor
    dropped: Tensor
    weights: Tensor | None
    teach: Callable[[Tensor], Tensor] | None = None


def select(
    scores: Tensor, keep: int, ranked_by: Tensor | None = None, normalise: bool = True
) -> Selection:
    """Select the tokens to keep; equal scores favor the earlier token.

    Args:
        scores: One score per non-prefix token [B, T - P].
        keep: How many to keep, K.
        ranked_by: What decides in place of the scores [B, T - P], which then are the merge
            weights only.
        normalise: Whether the merge weights of an image shall have the sum 1.

    Returns:
        The selection.
    """
    scores = wide(scores) if scores.dtype.itemsize < 4 else scores
    ranks = scores if ranked_by is None else ranked_by
    best = ranks.sort(dim=1, descending=True, stable=True)
    kept, dropped = best.indices[:, :keep].sort(dim=1).values, best.indices[:, keep:]
    weights = best.values[:, keep:] if ranked_by is None else scores.gather(1, dropped)
    if normalise:
        weights = weights / (weights.sum(dim=1, keepdim=True) + WEIGHT_FLOOR)
    return Selection(kept, dropped, weights)
