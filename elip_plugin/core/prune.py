"""Select, then apply: keep the best-scored tokens, merge the others (paper, section 3).

Shapes: B batch, P prefix tokens, T tokens, K kept, M = T - P - K dropped, D width.
"""

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
        dropped: Indices dropped [B, M], best score first.
        weights: Merge weights of the dropped [B, M], float32 or wider.
    """

    kept: Tensor
    dropped: Tensor
    weights: Tensor


def select(scores: Tensor, keep: int) -> Selection:
    """Choose the tokens to keep; equal scores favour the earlier token.

    Args:
        scores: One score per non-prefix token [B, T - P].
        keep: How many to keep, K.

    Returns:
        The selection.
    """
    best = scores.sort(dim=1, descending=True, stable=True)
    kept, dropped = best.indices[:, :keep].sort(dim=1).values, best.indices[:, keep:]
    weights = best.values[:, keep:]
    return Selection(kept, dropped, weights / (weights.sum(dim=1, keepdim=True) + WEIGHT_FLOOR))


def reduce(x: Tensor, selection: Selection, *, prefix: int, merge: bool) -> Tensor:
    """Apply a selection to the tokens.

    Args:
        x: Tokens [B, T, D]; gradient flows through them.
        selection: Which to keep and how to weigh the rest; no gradient.
        prefix: Prefix tokens P, kept as they are.
        merge: Whether to append the weighted sum of the dropped tokens.

    Returns:
        [prefix, kept, merged]: tokens [B, P + K + 1, D], or [B, P + K, D] without merging.
    """
    head = torch.arange(prefix, device=x.device).expand(x.shape[0], -1)
    kept = _rows(x, torch.cat([head, selection.kept + prefix], dim=1))
    if not merge:
        return kept
    dropped = _rows(x, selection.dropped + prefix)
    # A product and a sum, which autocast leaves in the weights' precision.
    merged = (dropped * selection.weights.unsqueeze(-1)).sum(dim=1, keepdim=True)
    return torch.cat([kept, merged.to(x.dtype)], dim=1)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
