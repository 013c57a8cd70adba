"""How far a training is, and what a schedule makes of it.

Whoever runs the training reports its step and the number of all its steps: OpenCLIP's schedulers
and LAVIS' runners do so by themselves, own loops by `Handle.update_progress`.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from elip_plugin.config import SCHEDULES, ElipConfig, Stage
from elip_plugin.errors import ConfigError

LEVELS = 4
"""Levels below the target that `warmup` passes, 0 (all tokens) included: a compiled model has a
graph for each."""

MOST_STEPS = 1 << 63
"""Of a training; a number that is not below it is no count, infinity and NaN included."""


def level_at(share: float, config: ElipConfig) -> float:
    """Return how much of the pruning is in force, 0 to 1, at a share of the training."""
    share += 1e-9  # 3 of 10 steps are 0.3 of a training, in binary too
    if config.final_unpruned > 0 and share >= 1 - config.final_unpruned:
        return 0.0
    if share >= config.warmup:
        return 1.0
    return int(LEVELS * share / config.warmup) / LEVELS


def text_weight_at(share: float, config: ElipConfig) -> float:
    """Return the text weight at a share of the training."""
    if config.text_anneal == 0:
        return config.text_weight
    return config.text_weight * max(0.0, 1 - share / config.text_anneal)


def config_at(level: float, config: ElipConfig, num_patches: int) -> ElipConfig:
    """Return the configuration whose stages remove `level` (above 0, up to 1) of its tokens."""

    def keep(stage: Stage) -> float:
        if isinstance(stage.keep, int):
            # At least 2: the integer 1 would be ambiguous.
            return max(2, round(num_patches - level * (num_patches - stage.keep)))
        return 1 - level * (1 - stage.keep)

    stages = (replace(stage, keep=keep(stage)) for stage in config.stages)
    return config if level == 1 else replace(config, stages=tuple(stages))


class TrainingProgress:
    """How far the training of one tower is, by whose weights a training command finds it."""

    def __init__(self, config: ElipConfig, module: nn.Module) -> None:
        self.config, self.module = config, module
        self.level = level_at(0.0, config)
        self.text_weight = config.text_weight
        self.scheduled = any(getattr(config, name) > 0 for name in SCHEDULES)
        self.reported = not self.scheduled
        self._follow()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy, which is then found by its own weights."""
        self.__dict__.update(state)
        self._follow()

    def _follow(self) -> None:
        if self.scheduled:
            _scheduled.add(self)

    def update(self, step: int, total_steps: int) -> None:
        """Take the optimizer steps made so far, from 0, and those of the whole training."""
        if not (0 <= step < MOST_STEPS and 1 <= total_steps < MOST_STEPS):
            raise ConfigError(
                f"training progress must be a step from 0 up of 1 or more, got {step} of "
                f"{total_steps}"
            )
        self.reported = True
        share = step / total_steps
        self.level = level_at(share, self.config)
        self.text_weight = text_weight_at(share, self.config)

    def warn_unreported(self) -> None:
        """Warn once that a schedule is to be followed and nobody reports the progress."""
        self.reported = True
        warnings.warn(
            f"this ELIP config has a schedule ({', '.join(SCHEDULES)}), but the training reports "
            "no progress, so it stays at its first step; call "
            "handle.update_progress(step, total_steps) before each step",
            stacklevel=3,
        )


_scheduled: weakref.WeakSet[TrainingProgress] = weakref.WeakSet()


def update_for(parameters: Iterable[Tensor], step: int, total_steps: int) -> None:
    """Report progress for the towers that some of the trained weights belong to."""
    if not _scheduled:
        return
    trained = {id(parameter) for parameter in parameters}
    for progress in list(_scheduled):
        if any(id(parameter) in trained for parameter in progress.module.parameters()):
            progress.update(step, total_steps)
