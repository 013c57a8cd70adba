"""Install a description's class swaps after all checks, and find the pruner again."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from torch import nn

from elip_plugin.config import ElipConfig
from elip_plugin.errors import ConfigError, ElipError, UnsupportedModelError
from elip_plugin.patching.patch_embedding import swap_patch_embedding
from elip_plugin.patching.progress import TrainingProgress
from elip_plugin.patching.pruner import Pruner, TowerShape
from elip_plugin.patching.swap import (
    ATTRIBUTE,
    Swap,
    find_patched,
    refuse_replaced_forward,
)
from elip_plugin.reducers import find_reducer


@dataclass(frozen=True)
class Tower:
    """A vision tower that can be pruned.

    Attributes:
        shape: Its numbers.
        stack: The swap of what runs its blocks.
        blocks: The swaps of its blocks, in their order; only those of blocks that the reducer
            calls in a mode are made.
        others: Swaps of other parts of it.
        random_blocks: Whether looking ahead may not call a block by itself, because it has
            dropout or stochastic depth; the swaps of all blocks are made then.
        module: The tower, where that is more than what runs its blocks.
        patch_embed: The convolution that makes each token of one patch, for reducers that read
            pixels; None where there is no such module.
        norm: What normalises the tokens after the last block, for reducers that compare them with
            a text; None where there is no such module in the tower.
    """

    shape: TowerShape
    stack: Swap
    blocks: tuple[Swap, ...]
    others: tuple[Swap, ...] = ()
    random_blocks: bool = False
    module: nn.Module | None = None
    patch_embed: nn.Module | None = None
    norm: nn.Module | None = None


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
    """

    module: nn.Module
    tower: Tower
    others: tuple[Swap, ...] = ()
    momentum: Tower | None = None
    no_eval_by_text: str = ""
    no_text_guide: ElipError | None = None
    teachable: bool = False


def install(description: Description, config: ElipConfig) -> Pruner:
    """Patch a described model in place.

    Args:
        description: What the host says of it.
        config: What to prune.

    Returns:
        The pruner of its vision tower. On any error the model is as before.

    Raises:
        ConfigError: If the configuration does not suit this kind of model.
        UnsupportedModelError: If its reducer reads pixels, and a tower does not embed patches
            by one convolution; if it compares, and a tower has no last norm; or if a part of a
            tower would ignore the patching.
    """
    name, reason = type(description.module).__name__, description.no_eval_by_text
    if config.eval_mode == "text" and config.guide_source == "caption" and reason:
        raise ConfigError(f"eval_mode 'text' is refused for {name}: {reason}")
    if find_reducer(config.reducer).compares and config.guide_source == "caption" and reason:
        warnings.warn(
            f"the text that chooses tokens by {config.reducer!r} is one that {name} is trained to "
            "find among others: the choice tells the loss which it is, and a contrastive training "
            "then learns nothing else (docs/text.md); use another reducer",
            stacklevel=3,
        )
    if config.prune_momentum and description.momentum is None:
        raise ConfigError(
            f"prune_momentum is for models with a momentum encoder (ALBEF and BLIP of LAVIS); "
            f"{name} has none here: leave it out"
        )
    if config.choice_loss > 0 and not description.teachable:
        raise ConfigError(
            f"choice_loss is for models whose text encoder reads the tower by cross-attention "
            f"(ALBEF and BLIP of LAVIS); {name} has none here: leave it out"
        )
    if config.text_weight > 0 and description.no_text_guide is not None:
        raise description.no_text_guide
    towers = [description.tower]
    if config.prune_momentum and description.momentum is not None:
        towers.append(description.momentum)
    for tower in towers:
        for swap in (tower.stack, *tower.blocks, *tower.others):
            refuse_replaced_forward(swap.module)
    for swap in description.others:
        refuse_replaced_forward(swap.module)
    # Shared: no optimizer trains a momentum encoder.
    progress = TrainingProgress(config, towers[0].module or towers[0].stack.module)
    pruners = [
        Pruner(config, tower.shape, progress, tower.random_blocks, tower.norm) for tower in towers
    ]
    embeddings = [
        swap_patch_embedding(tower.patch_embed, config.reducer)
        for tower in towers
        if pruners[0].reducer.reads_pixels
    ]
    for embedding, pruner in zip(embeddings, pruners):
        embedding.make(elip=pruner)
    for tower, pruner in zip(towers, pruners):
        used = pruner.reducer.blocks_used(pruner.plan.stages, tower.shape.depth)
        for i, block in enumerate(tower.blocks):
            if tower.random_blocks or i in used:
                block.make()
        for other in tower.others:
            other.make()
        tower.stack.make(elip=pruner)
    for other in description.others:
        other.make(elip=pruners[0])
    return pruners[0]


def find_pruner(module: Any) -> Pruner:
    """Return the pruner of a patched model (not its momentum encoder's) or tower."""
    found = vars(module).get(ATTRIBUTE)
    if isinstance(found, Pruner):
        return found
    for patched in find_patched(module):
        found = vars(patched).get(ATTRIBUTE)
        if isinstance(found, Pruner):
            return found
    raise UnsupportedModelError(
        f"{type(module).__name__} is not pruned by ELIP; call elip_plugin.apply(model) first"
    )


def find_pruners(model: nn.Module) -> list[Pruner]:
    """Return all pruners of a model: one for each of its towers that is pruned."""
    found = (vars(module).get(ATTRIBUTE) for module in find_patched(model))
    return list({id(pruner): pruner for pruner in found if isinstance(pruner, Pruner)}.values())
