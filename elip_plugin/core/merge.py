"""Apply a selection: keep tokens, merge the others into one (paper, section 3), or put them back.

Shapes: B batch, P prefix tokens, T tokens, K kept, M = T - P - K dropped, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from elip_plugin.core.select import Selection
from elip_plugin.errors import UnsupportedModelError


def keep_and_merge(x: Tensor, selection: Selection, prefix: int) -> Tensor:
    """Apply a selection to tokens [B, T, D]; gradient flows through them.

    Returns [prefix, kept, merged]: tokens [B, P + K + 1, D], or [B, P + K, D] without merge
    weights.
    """
    if selection.weights is None:
        return take_rows(x, after_prefix(selection.kept, prefix))
    order = torch.cat([selection.kept, selection.dropped], dim=1) + prefix
    kept, dropped = take_rows(x, order).tensor_split([selection.kept.shape[1]], dim=1)
    # A product and a sum, which autocast leaves in the weights' precision.
    merged = (dropped * selection.weights.unsqueeze(-1)).sum(dim=1, keepdim=True)
    return torch.cat([x[:, :prefix], kept, merged.to(x.dtype)], dim=1)


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """Take rows of [B, T, D] by indices [B, K]; gradient flows through them.

    Whole rows are copied, several times as fast as by `gather` with repeated indices.
    """
    starts = torch.arange(x.shape[0], device=x.device)[:, None] * x.shape[1]
    taken = x.flatten(0, 1).index_select(0, (index + starts).flatten())
    return taken.view(*index.shape, x.shape[2])


def after_prefix(index: Tensor, prefix: int) -> Tensor:
    """Turn indices of tokens after the prefix [B, K] into those of all, prefix first [B, P + K]."""
    head = torch.arange(prefix, device=index.device).expand(index.shape[0], -1)
    return torch.cat([head, index + prefix], dim=1)


def positions_after(selection: Selection) -> Tensor:
    """Return which token each token after a selection has its position from, [B, K].

    With merge weights [B, K + 1]: the merged token has that of the largest weight. Positions cannot
    be averaged: the mean of two rotations is not a rotation, and the mean of two offsets may not be
    in a table.
    """
    if selection.weights is None:
        return selection.kept
    largest = selection.weights.argmax(dim=1, keepdim=True)
    return torch.cat([selection.kept, selection.dropped.gather(1, largest)], dim=1)


def groups_of(selection: Selection) -> Tensor:
    """Return the token after a stage that each one before it is in [B, T - P]; it must merge."""
    if selection.weights is None and selection.dropped.shape[1]:
        raise UnsupportedModelError(
            "this reducer drops tokens, and says that it merges them: set merges = False in its "
            "class, or restore: false in the configuration"
        )
    kept = selection.kept
    numbers = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
    total = kept.shape[1] + selection.dropped.shape[1]
    groups = kept.new_full((kept.shape[0], total), kept.shape[1])
    return groups.scatter(1, kept, numbers)


def put_back(x: Tensor, before: Tensor, selection: Selection, prefix: int) -> Tensor:
    """Put the tokens that a stage set aside back between those that it kept.

    Returns tokens [B, T, D]: prefix and kept ones from `x` [B, P + K, D], the others from `before`,
    which entered the stage [B, T, D].
    """
    index = selection.kept.unsqueeze(-1).expand(-1, -1, x.shape[-1])
    rest = before[:, prefix:].to(x.dtype).scatter(1, index, x[:, prefix:])
    return torch.cat([x[:, :prefix], rest], dim=1)
