"""What is wrong with a configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from elip_plugin.config.stage import INCOMPLETE, Stage
from elip_plugin.errors import nearest, shown
from elip_plugin.reducers import find_reducer, option_defaults, option_faults, reducers

if TYPE_CHECKING:
    from elip_plugin.config.elip_config import ElipConfig

EVAL_MODES = ("full", "image", "text")
GUIDE_SOURCES = ("caption", "batch")
"""Whose texts guide an image: its own, or all of the batch by their similarity to the image."""

SCHEDULES = ("warmup", "final_unpruned", "text_anneal")
"""Shares of the training after which something changes."""


def is_one_of(value: Any, known: Iterable[str]) -> bool:
    """Whether a value, of any type, is one of the known strings."""
    return isinstance(value, str) and value in list(known)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def find_faults(config: ElipConfig) -> list[str]:
    """Return what is wrong with a configuration.

    Args:
        config: The configuration; its fields may hold anything.

    Returns:
        A sentence for each fault; none for a configuration that can be used.
    """
    faults, stage_faults = [], []
    if not isinstance(config.stages, tuple):
        stage_faults.append(f"stages must be a list of stages, got {shown(config.stages)}")
        faults += stage_faults
    else:
        for i, stage in enumerate(config.stages):
            stage_faults += [f"stage {i}: {fault}" for fault in _stage_faults(stage)]
        faults += stage_faults
        if any(stage is INCOMPLETE for stage in config.stages):
            stage_faults.append("named already")
        blocks = [s.block for s in config.stages if isinstance(s, Stage) and _is_int(s.block)]
        if any(later <= earlier for earlier, later in pairwise(blocks)):
            faults.append(f"blocks of the stages must increase, got {shown(blocks)}")
        faults += _return_faults(config.stages)
    weight = config.text_weight
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= 1:
        faults.append(f"text_weight must be a number from 0 to 1, got {shown(weight)}")
    for name in ("merge", "prune_momentum"):
        if not isinstance(getattr(config, name), bool):
            faults.append(f"{name} must be true or false, got {shown(getattr(config, name))}")
    allowed = (("guide_source", GUIDE_SOURCES), ("eval_mode", EVAL_MODES), ("reducer", reducers()))
    for name, known in allowed:
        if not is_one_of(getattr(config, name), known):
            given = shown(getattr(config, name))
            faults.append(f"{name} must be one of {list(known)}, got {given}")
    if is_one_of(config.reducer, reducers()):
        faults += _option_faults(config.reducer, dict(config.reducer_options))
    faults += _schedule_faults(config)
    for name in ("reference_depth", "total_steps"):
        value = getattr(config, name)
        if value is not None and (not _is_int(value) or value < 1):
            faults.append(f"{name} must be null or an integer from 1 up, got {shown(value)}")
    if not (faults or stage_faults):  # a reducer may rely on the fields by themselves
        faults += find_reducer(config.reducer).config_faults(config)
    return faults


def _return_faults(stages: tuple[Any, ...]) -> list[str]:
    faults = []
    for i, (earlier, later) in enumerate(pairwise(stages)):
        if not (isinstance(earlier, Stage) and isinstance(later, Stage) and _is_int(later.block)):
            continue
        back: Any = earlier.until
        if _is_int(back) and later.block < back:
            faults.append(
                f"stage {i + 1}: must not come before block {back}, where the tokens of stage {i} "
                f"come back, got block {later.block}"
            )
    return faults


def _schedule_faults(config: ElipConfig) -> list[str]:
    faults = []
    shares = {name: getattr(config, name) for name in SCHEDULES}
    for name, share in shares.items():
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            faults.append(f"{name} must be a share of the training from 0 to 1, got {shown(share)}")
    if not faults and config.warmup + config.final_unpruned > 1:
        faults.append(
            f"warmup and final_unpruned must not exceed 1 together, got {config.warmup} and "
            f"{config.final_unpruned}"
        )
    return faults


def _option_faults(reducer: str, options: Mapping[str, Any]) -> list[str]:
    known, faults = option_defaults(reducer), []
    for key in options:
        if key in known:
            continue
        others = [name for name in reducers() if key in option_defaults(name)]
        hint = nearest(key, known, f"it has {list(known)}")
        if others:
            hint = f"reducers {others} have it"
        faults.append(f"reducer {reducer!r} has no option {shown(key)}: leave it out; {hint}")
    return faults or option_faults(replace(find_reducer(reducer), **options))


def _stage_faults(stage: Any) -> list[str]:
    if stage is INCOMPLETE:
        return []
    if not isinstance(stage, Stage):
        return [f"must be a Stage (block, lookahead, keep), got {shown(stage)}"]
    faults = []
    if not _is_int(stage.block) or stage.block < 0:
        faults.append(f"block must be an integer from 0 up, got {shown(stage.block)}")
    if not _is_int(stage.lookahead) or stage.lookahead < 1:
        faults.append(f"lookahead must be an integer from 1 up, got {shown(stage.lookahead)}")
    keep = stage.keep
    if _is_int(keep) and keep == 1:
        faults.append("keep 1 is ambiguous: write 1.0 to keep all tokens, or a count from 2 up")
    elif _is_int(keep) and keep < 2:
        faults.append(f"keep as a count must be 2 or more, got {shown(keep)}")
    elif not _is_int(keep) and not (isinstance(keep, float) and 0 < keep <= 1):
        faults.append(f"keep must be a ratio in (0, 1] or a count from 2 up, got {shown(keep)}")
    until = stage.until
    if until is not None and not (_is_int(until) and _is_int(stage.block) and until > stage.block):
        faults.append(
            f"until must be null or a block after {shown(stage.block)}, got {shown(until)}"
        )
    return faults
