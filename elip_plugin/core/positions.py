"""Where the tokens are, for blocks that read that at every call.

Blocks with rotary or relative positions do, and blocks that mask the padding of a batch whose
images have different numbers of patches.

A position is the index of a token that entered the tower, into what the tower computed for all of
them. Positions cannot be averaged: the mean of two rotations is not a rotation, and the mean of two
offsets may not be in a table. A merged token therefore has the position of the token with the
largest weight in it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from elip_plugin.core.select import Selection

PositionOptions = Callable[[Tensor | None, Tensor | None], Mapping[str, Any]]
"""From the positions of the tokens after the prefix, indices [B, T - P] of those that entered the
first block (None: these themselves), and which of them are real [B, T - P] (None: all), to the
options that every block is called with."""


@dataclass(frozen=True)
class Positions:
    """The positions of the tokens between two blocks."""

    blocks: tuple[Any, ...]  # all of the tower's
    options: PositionOptions  # what a block is called with for given positions
    index: Tensor | None = None  # the positions now; None before a token left
    valid: Tensor | None = None  # which after the prefix are real [B, T - P]; None: all

    def bound_blocks(self) -> tuple[Callable[..., Any], ...]:
        """Return the blocks, to be called with tokens at these positions."""
        options = self.options(self.index, self.valid)
        return tuple(functools.partial(block, **options) for block in self.blocks)

    def take(self, index: Tensor, valid: Tensor | None = None) -> Positions:
        """Return the positions of tokens that were taken [B, T'] from those after the prefix.

        Of those taken, `valid` [B, T'] are real; None where all are.
        """
        index = index if self.index is None else self.index.gather(1, index)
        return replace(self, index=index, valid=valid)


def positions_after(selection: Selection) -> Tensor:
    """Return which token each token after a selection has its position from, [B, K].

    With merge weights [B, K + 1]: the merged token has that of the largest weight.
    """
    if selection.weights is None:
        return selection.kept
    largest = selection.weights.argmax(dim=1, keepdim=True)
    return torch.cat([selection.kept, selection.dropped.gather(1, largest)], dim=1)


def valid_after(selection: Selection) -> Tensor | None:
    """Return which token after a selection is real [B, K], or [B, K + 1] with the merged one's.

    None where all are. A token that nothing was merged into is not.
    """
    if selection.valid is None or selection.weights is None:
        return selection.valid
    return torch.cat([selection.valid, selection.weights.sum(dim=1, keepdim=True) > 0], dim=1)


def attention_mask(valid: Tensor, prefix: int, dtype: torch.dtype) -> Tensor:
    """Return what is added to the attention's logits so that nothing attends to padding.

    It is 0, or the lowest number, [B, 1, 1, T]; `valid` [B, T - P] leaves out the prefix.
    """
    real = F.pad(valid, (prefix, 0), value=True)[:, None, None]
    return torch.zeros_like(real, dtype=dtype).masked_fill_(~real, torch.finfo(dtype).min)
