"""What a host says of a model: its towers' numbers, and the class swaps that prune it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from elip_plugin.errors import ElipError
from elip_plugin.patching.swap import Swap


@dataclass(frozen=True)
class TowerShape:
    """The numbers of a vision tower.

    Attributes:
        num_patches: Patches N at the tower's nominal resolution.
        depth: Number of blocks.
        width: Tower width D.
        prefix: Prefix tokens P.
        class_query: Whether the class token is the query; see `elip_plugin.core.score.score`.
        frozen: Whether no weight of the tower is trained, so that its training step is a forward.
    """

    num_patches: int
    depth: int
    width: int
    prefix: int = 1
    class_query: bool = True
    frozen: bool = False


@dataclass(frozen=True)
class Tower:
    """A vision tower that can be pruned.

    Attributes:
        shape: Its numbers.
        stack: The swap of what runs its blocks.
        blocks: The swaps of its blocks, in their order; only those of blocks that the reducer
            calls in a mode are made.
        others: Swaps of other parts of it; where what runs the blocks is not the whole tower, that
            of the tower, a `PrunableTower`.
        random_blocks: Whether looking ahead may not call a block by itself, because it has
            dropout or stochastic depth; the swaps of all blocks are made then.
        module: The tower, where that is more than what runs its blocks.
        patch_embed: The convolution that makes each token of one patch, for reducers that read
            pixels; None where there is no such module.
        norm: Name, in the tower, of what normalizes the tokens after the last block, for reducers
            that compare them with a text; "" where there is no such module in the tower.
    """

    shape: TowerShape
    stack: Swap
    blocks: tuple[Swap, ...]
    others: tuple[Swap, ...] = ()
    random_blocks: bool = False
    module: nn.Module | None = None
    patch_embed: nn.Module | None = None
    norm: str = ""


@dataclass(frozen=True)
class Description:
    """What a host says of a model or tower; making it changes nothing.

    Attributes:
        module: The model, or a bare tower.
        tower: Its vision tower.
        others: Swaps besides the towers', the model's own included.
        momentum: The tower of its momentum encoder, if it has one.
        no_eval_by_text: Why evaluation may not prune by text; "" if it may.
        no_text_guide: What to raise where a text shall guide; None if it can.
        teachable: Whether the guide has a gradient in training, so that a loss on the choice
            teaches what makes it.
        default: What it is pruned by where nothing is said: a preset's name, or a mapping for
            `ElipConfig.from_mapping`; None for the default preset.
    """

    module: nn.Module
    tower: Tower
    others: tuple[Swap, ...] = ()
    momentum: Tower | None = None
    no_eval_by_text: str = ""
    no_text_guide: ElipError | None = None
    teachable: bool = False
    default: Mapping[str, Any] | str | None = None
