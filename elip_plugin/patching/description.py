"""What a host says of a model: its towers as data, and the class swaps of what is around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from elip_plugin.errors import ElipError
from elip_plugin.patching.parts import Parts
from elip_plugin.patching.runner import Calling
from elip_plugin.patching.swap import Swap


@dataclass(frozen=True)
class TowerShape:
    """The numbers of a vision tower.

    Attributes:
        num_patches: Patches N at the tower's nominal resolution.
        depth: Number of blocks.
        width: Tower width D.
        prefix: Prefix tokens P.
        class_query: Whether the class token is the query; see `StageContext`.
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
    """A vision tower that can be pruned, as data; `install` does the rest.

    Attributes:
        module: The tower, from images to features.
        blocks: Path of the list of its blocks in it.
        parts: Where its blocks have their parts, or the patched class of a block, by their classes.
        num_patches: Patches N at the tower's nominal resolution.
        width: Width D.
        prefix: Prefix tokens P.
        class_query: Whether the class token is the query.
        scale: Factor on the attention's logits; None for (A / H) ** -0.5.
        norm: Path of what normalizes the tokens, or the class token, after the last block; "" where
            there is no such module.
        patch_embed: Path of the convolution that makes each token of one patch; "" where there is
            none.
        attentions: Patched classes of what attends where `parts` name it, by their classes, besides
            `nn.MultiheadAttention`.
        entries: Methods of it that are one forward, from images on.
        calling: How it calls its blocks.
        restores: Whether the merged tokens are given back after the last block where nothing else
            is asked for: False where only the class token is read, or a text side reads what is
            left.
        patch_all_blocks: Whether blocks by themselves cannot be called in a pruned forward.
        swaps: Swaps of further parts.
    """

    module: Any
    blocks: str
    parts: Mapping[type, Parts | type[Any]]
    num_patches: int
    width: int
    prefix: int = 1
    class_query: bool = True
    scale: float | None = None
    norm: str = ""
    patch_embed: str = ""
    attentions: Mapping[type, type[Any]] = field(default_factory=dict)
    entries: tuple[str, ...] = ("forward",)
    calling: Calling = field(default_factory=Calling)
    restores: bool = True
    patch_all_blocks: bool = False
    swaps: tuple[Swap, ...] = ()

    @property
    def block_list(self) -> Any:
        """The list of its blocks."""
        return self.module.get_submodule(self.blocks)

    @property
    def shape(self) -> TowerShape:
        """Its numbers."""
        return TowerShape(
            self.num_patches,
            len(self.block_list),
            self.width,
            self.prefix,
            self.class_query,
            frozen=not any(weight.requires_grad for weight in self.module.parameters()),
        )


@dataclass(frozen=True)
class Description:
    """What a host says of a model or tower; making it changes nothing.

    Attributes:
        module: The model, or a bare tower.
        tower: Its vision tower.
        swaps: Swaps besides the towers', the model's own included.
        momentum: The tower of its momentum encoder, if it has one.
        no_eval_by_text: Why evaluation may not prune by text; "" if it may.
        no_dropping: Why tokens may be merged and not dropped; "" if they may.
        no_text_guide: What to raise where a text shall guide; None if it can.
        teachable: Whether the guide has a gradient in training, so that a loss on the choice
            teaches what makes it.
        default: What it is pruned by where nothing is said: a preset's name, or a mapping for
            `ElipConfig.from_mapping`; None for "half".
    """

    module: nn.Module
    tower: Tower
    swaps: tuple[Swap, ...] = ()
    momentum: Tower | None = None
    no_eval_by_text: str = ""
    no_dropping: str = ""
    no_text_guide: ElipError | None = None
    teachable: bool = False
    default: Mapping[str, Any] | str | None = None
