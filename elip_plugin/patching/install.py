"""Install a description's towers after all checks, and find the pruner again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from elip_plugin.config import ElipConfig
from elip_plugin.errors import ConfigError, UnsupportedModelError
from elip_plugin.patching.blocks import PrunableAttention
from elip_plugin.patching.description import Description, Tower
from elip_plugin.patching.named import patched_class
from elip_plugin.patching.parts import Parts, parts_block
from elip_plugin.patching.patch_embedding import swap_patch_embedding
from elip_plugin.patching.progress import TrainingProgress
from elip_plugin.patching.pruner import Pruner
from elip_plugin.patching.runner import BlockList, PrunedTower
from elip_plugin.patching.swap import (
    ATTRIBUTE,
    Swap,
    entry_for,
    find_patched,
    refuse_replaced_forward,
)
from elip_plugin.patching.wrappers import innermost, is_adapter


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
    config.reducer.check_model(
        name,
        text_is_sought=bool(reason) and config.guide_source == "caption",
        teachable=description.teachable,
    )
    if config.text_weight > 0 and description.no_text_guide is not None:
        raise description.no_text_guide
    towers = [description.tower]
    if config.prune_momentum and description.momentum is not None:
        towers.append(description.momentum)
    # Shared: no optimizer trains a momentum encoder.
    progress = TrainingProgress(config, description.tower.module)
    pruners = [
        Pruner(config, tower.shape, progress, tower.norm, restores=tower.restores)
        for tower in towers
    ]
    if description.no_dropping and not pruners[0].restores:
        raise UnsupportedModelError(
            f"{description.no_dropping}: use a reducer that merges tokens, such as 'half', which "
            "gives all patches a token back"
        )
    made = [swaps_of(tower, pruner) for tower, pruner in zip(towers, pruners, strict=True)]
    # What a tower's own `swaps` do is done by their class, whatever their objects have.
    apart = {id(swap.module) for tower in towers for swap in tower.swaps}
    for swap in (*(swap for swaps in made for swap in swaps), *description.swaps):
        if id(swap.module) not in apart:
            refuse_replaced_forward(swap.module)
    for swaps, pruner in zip(made, pruners, strict=True):
        for swap in swaps:
            swap.apply(elip=pruner)
    for other in description.swaps:
        other.apply(elip=pruners[0])
    return pruners[0]


def swaps_of(tower: Tower, pruner: Pruner) -> list[Swap]:
    """Return the swaps that prune a tower; refuse one without what its reducer needs."""
    reducer, stages, depth = pruner.reducer, pruner.plan.stages, tower.shape.depth
    module, blocks = tower.module, tower.block_list
    if "norm" in reducer.needs and not tower.norm:
        raise UnsupportedModelError(
            f"reducer {reducer.name!r} compares the tokens with the text after the tower's last "
            "norm, which this tower does not have: use another reducer"
        )
    run, in_mode = reducer.blocks_run(stages, depth), reducer.blocks_in_mode(stages, depth)
    for block in blocks:
        refuse_dropout(block)
    by_parts = any(random_parts(block) for block in blocks)
    if by_parts:  # all that is looked through is called with a mode
        in_mode = in_mode | {b for s in stages for b in range(s.block, s.block + s.lookahead)}
    if tower.calling.positions_for is not None:
        run = set(range(min(run), depth))
    if pruner.restores:
        run = run | {depth - 1}
    listed = {
        "elip_calling": tower.calling,
        "elip_steps": frozenset(run),
        "elip_ahead_by_parts": by_parts,
    }
    swaps = [
        Swap(module, patched_class(PrunedTower, type(module), *tower.entries)),
        Swap(blocks, patched_class(BlockList, type(blocks)), listed),
        *tower.swaps,
    ]
    if "patch_embed" in reducer.needs:
        embed = module.get_submodule(tower.patch_embed) if tower.patch_embed else None
        swaps.append(swap_patch_embedding(embed, reducer.name))
    for i, block in enumerate(blocks):
        if i in in_mode or tower.patch_all_blocks:
            swaps += block_swaps(block, tower)
    return swaps


def block_swaps(block: Any, tower: Tower) -> list[Swap]:
    """Return the swaps of a block, and of its attention where that is torch's own."""
    patched: Any = entry_for(block, tower.parts)
    if isinstance(patched, Parts):
        patched = parts_block(type(block), patched)
    swaps = [Swap(block, patched, {"elip_scale": tower.scale})]
    path = patched.elip_parts.attention if hasattr(patched, "elip_parts") else ""
    if path:
        attention = innermost(block.get_submodule(path))
        known = {nn.MultiheadAttention: PrunableAttention, **tower.attentions}
        if type(attention) not in known:
            raise UnsupportedModelError(
                f"{path!r} of {type(block).__name__} is a {type(attention).__name__}: supported is "
                "torch's MultiheadAttention, by itself or wrapped by adapters"
            )
        swaps.append(Swap(attention, patched_class(known[type(attention)], type(attention))))
    return swaps


def random_parts(block: nn.Module) -> dict[str, float]:
    """Return the shares that a block drops at random in training, by their paths.

    Dropout of adapters belongs to them: it acts wherever their layer is called.
    """
    own = [path for path, module in block.named_modules() if is_adapter(module)]
    return {
        f"{path}.{name}".removeprefix("."): value
        for path, module in block.named_modules()
        if not any(f"{path}.".startswith(f"{each}.") for each in own)
        for name, value in vars(module).items()
        if isinstance(value, float) and value > 0 and (name == "p" or "drop" in name)
    }


def refuse_dropout(block: nn.Module) -> None:
    """Refuse a block with dropout; stochastic depth may be there."""
    kinds = {path: type(module).__name__ for path, module in block.named_modules()}
    found = {
        path: share
        for path, share in random_parts(block).items()
        if not kinds[path.rpartition(".")[0]].endswith(("DropPath", "StochasticDepth"))
    }
    if found:
        raise UnsupportedModelError(
            f"a block {type(block).__name__} with dropout {found}: choosing tokens must be "
            "deterministic; set it to 0 when the model is built (stochastic depth may stay)"
        )


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
