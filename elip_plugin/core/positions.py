"""Where the tokens are, for blocks that read that at every call (rotary or relative positions).

A position is the index of a token that entered the tower, into what the tower computed for all of
them. Positions cannot be averaged: the mean of two rotations is not a rotation, and the mean of two
offsets may not be in a table. A merged token therefore has the position of the token with the
largest weight in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from elip_plugin.core.select import Selection

PositionOptions = Callable[[Tensor], Mapping[str, Any]]
"""From the positions of the tokens after the prefix, indices [B, T - P] of those that entered the
first block, to the options that every block is called with."""


def positions_after(selection: Selection) -> Tensor:
    """Return which token each token after a selection has its position from, [B, K].

    With merge weights [B, K + 1]: the merged token has that of the largest weight.
    """
    if selection.weights is None:
        return selection.kept
    largest = selection.weights.argmax(dim=1, keepdim=True)
    return torch.cat([selection.kept, selection.dropped.gather(1, largest)], dim=1)
