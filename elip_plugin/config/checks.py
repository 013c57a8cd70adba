"""What is wrong with a configuration by itself; how its stages fit a tower is for the plan."""

from __future__ import annotations

from typing import Any

from elip_plugin.config.stage import INCOMPLETE, Stage
from elip_plugin.errors import shown
from elip_plugin.reducers import Reducer, option_faults

EVAL_MODES = ("full", "image", "text")
GUIDE_SOURCES = ("caption", "batch")
"""Whose texts guide an image: its own, or all of the batch by their similarity to the image."""

SCHEDULES = ("warmup", "final_unpruned", "text_anneal")
"""Shares of the training after which something changes."""


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def find_faults(config: Any) -> list[str]:
    """Return what is wrong with a configuration.

    Args:
        config: An `ElipConfig`, or an object with its fields, which may hold anything. What is
            `INCOMPLETE` has been found fault with already.

    Returns:
        A sentence for each fault; none for a configuration that can be used.
    """
    faults = []
    whole = config.reducer is not INCOMPLETE
    if isinstance(config.stages, tuple):
        for i, stage in enumerate(config.stages):
            faults += [f"stage {i}: {fault}" for fault in _stage_faults(stage)]
            whole &= stage is not INCOMPLETE
    else:
        faults.append(f"stages must be a list of stages, got {shown(config.stages)}")
    faults += _share_faults(config)
    if config.restore is not None and not isinstance(config.restore, bool):
        faults.append(f"restore must be null, true or false, got {shown(config.restore)}")
    for name in ("merge", "prune_momentum"):
        if not isinstance(getattr(config, name), bool):
            faults.append(f"{name} must be true or false, got {shown(getattr(config, name))}")
    for name, known in (("guide_source", GUIDE_SOURCES), ("eval_mode", EVAL_MODES)):
        value = getattr(config, name)
        if not (isinstance(value, str) and value in known):
            faults.append(f"{name} must be one of {list(known)}, got {shown(value)}")
    if isinstance(config.reducer, Reducer):
        faults += option_faults(config.reducer)
    elif whole:
        faults.append(
            "reducer must be a Reducer, such as find_reducer('tome'), got "
            f"{shown(config.reducer)}; "
            "ElipConfig.from_mapping takes names"
        )
    depth = config.reference_depth
    if depth is not None and (not _is_int(depth) or depth < 1):
        faults.append(f"reference_depth must be null or an integer from 1 up, got {shown(depth)}")
    if not faults and whole:  # a reducer may rely on the fields by themselves
        faults += config.reducer.config_faults(config)
    return faults


def _share_faults(config: Any) -> list[str]:
    faults = []
    for name in ("text_weight", *SCHEDULES):
        share = getattr(config, name)
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            faults.append(f"{name} must be a number from 0 to 1, got {shown(share)}")
    if not faults and config.warmup + config.final_unpruned > 1:
        faults.append(
            f"warmup and final_unpruned must not exceed 1 together, got {config.warmup} and "
            f"{config.final_unpruned}"
        )
    return faults


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
    if stage.until is not None and not _is_int(stage.until):
        faults.append(f"until must be null or an integer, got {shown(stage.until)}")
    return faults
