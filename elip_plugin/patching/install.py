"""Install a description's class swaps after all checks, and find the pruner again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from elip_plugin.config import ElipConfig
from elip_plugin.errors import ConfigError, UnsupportedModelError
from elip_plugin.patching.description import Description, Tower
from elip_plugin.patching.patch_embedding import swap_patch_embedding
from elip_plugin.patching.progress import TrainingProgress
from elip_plugin.patching.pruner import Pruner
from elip_plugin.patching.swap import ATTRIBUTE, Swap, find_patched, refuse_replaced_forward
from elip_plugin.reducers import Reducer


def install(description: Description, config: ElipConfig) -> Pruner:
    """Patch a described model in place, after all checks; return the pruner of its tower.

    Raises ConfigError if the configuration does not suit this kind of model, PlanError if it does
    not fit the tower, and UnsupportedModelError if a tower lacks what the reducer needs, or a part
    of it would ignore the patching. The model is then as before.
    """
    name, reason = type(description.module).__name__, description.no_eval_by_text
    if config.eval_mode == "text" and config.guide_source == "caption" and reason:
        raise ConfigError(f"eval_mode 'text' is refused for {name}: {reason}")
    if config.prune_momentum and description.momentum is None:
        raise ConfigError(
            f"prune_momentum is for models with a momentum encoder (ALBEF and BLIP of LAVIS); "
            f"{name} has none here: leave it out"
        )
    config.method.check_model(
        name,
        text_is_sought=bool(reason) and config.guide_source == "caption",
        teachable=description.teachable,
    )
    if config.text_weight > 0 and description.no_text_guide is not None:
        raise description.no_text_guide
    towers = [description.tower]
    if config.prune_momentum and description.momentum is not None:
        towers.append(description.momentum)
    for tower in towers:
        for swap in (tower.stack, *tower.blocks, *description.others):
            refuse_replaced_forward(swap.module)
    # Shared: no optimizer trains a momentum encoder.
    tower = description.tower
    followed = tower.stack.module if tower.module is None else tower.module
    progress = TrainingProgress(config, followed)
    pruners = [
        Pruner(config, tower.shape, progress, tower.random_blocks, tower.norm) for tower in towers
    ]
    around = [swaps_around(tower, config.method) for tower in towers]
    for tower, pruner, more in zip(towers, pruners, around, strict=True):
        used = pruner.reducer.blocks_used(pruner.plan.stages, tower.shape.depth)
        for i, block in enumerate(tower.blocks):
            if tower.random_blocks or i in used:
                block.apply()
        for other in (*more, *tower.others, tower.stack):
            other.apply(elip=pruner)
    for other in description.others:
        other.apply(elip=pruners[0])
    return pruners[0]


def swaps_around(tower: Tower, reducer: Reducer) -> list[Swap]:
    """Return the swaps of what lies around a tower's blocks; refuse one without what is needed."""
    if "norm" in reducer.needs and not tower.norm:
        raise UnsupportedModelError(
            f"reducer {reducer.name!r} compares the tokens with the text after the tower's last "
            "norm, which this tower does not have: use another reducer"
        )
    if "patch_embed" not in reducer.needs:
        return []
    return [swap_patch_embedding(tower.patch_embed, reducer.name)]


def find_pruner(module: Any) -> Pruner:
    """Return the pruner of a patched model (not its momentum encoder's) or tower."""
    for pruner in _carried_by(module):
        return pruner
    raise UnsupportedModelError(
        f"{type(module).__name__} is not pruned by ELIP; call elip_plugin.apply(model) first"
    )


def find_pruners(model: nn.Module) -> list[Pruner]:
    """Return all pruners of a model: one for each of its towers that is pruned."""
    return list({id(pruner): pruner for pruner in _carried_by(model)}.values())


def _carried_by(model: nn.Module) -> Iterator[Pruner]:
    for module in find_patched(model):
        found = vars(module).get(ATTRIBUTE)
        if isinstance(found, Pruner):
            yield found
