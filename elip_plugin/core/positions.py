"""Where the tokens are, for blocks that read positions at every call: rotary and relative ones.

A token that is left has the position of one that entered the tower, as an index into what the
tower made for all of them: a mean of rotations is none, and one of two offsets may not be in a
table. So a merged token has the position of the one with the largest weight in it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from elip_plugin.core.select import Selection

PositionOptions = Callable[[Tensor | None], Mapping[str, Any]]
"""From the positions of the tokens after the prefix, indices [B, T - P] of those that entered the
first block (None: these themselves), to the options that every block is called with."""


@dataclass(frozen=True)
class Positions:
    """The positions of the tokens between two blocks.

    Attributes:
        blocks: All blocks of the tower.
        options: What a block is called with for given positions.
        index: The positions now; None before a token left.
    """

    blocks: tuple[Any, ...]
    options: PositionOptions
    index: Tensor | None = None

    def bound_blocks(self) -> tuple[Callable[..., Any], ...]:
        """Return the blocks, to be called with tokens at these positions."""
        options = self.options(self.index)
        return tuple(functools.partial(block, **options) for block in self.blocks)

    def take(self, index: Tensor) -> Positions:
        """Return the positions of tokens that were taken [B, T'] from those after the prefix."""
        return replace(self, index=index if self.index is None else self.index.gather(1, index))


def positions_after(selection: Selection) -> Tensor:
    """Return which token each token after a selection has its position from.

    Args:
        selection: What is kept, and how the rest is merged.

    Returns:
        Indices [B, K], or [B, K + 1] with the merged token's, which is that of the largest weight.
    """
    if selection.weights is None:
        return selection.kept
    largest = selection.weights.argmax(dim=1, keepdim=True)
    return torch.cat([selection.kept, selection.dropped.gather(1, largest)], dim=1)
