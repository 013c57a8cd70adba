"""Pruning over the course of training: slowly in at the start, all tokens at the end.

How far training is, is the optimizer's own step count: it is in the optimizer's state, so a
resumed run goes on where it was, and no training loop has to know of the schedule.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from elip_plugin.config import SCHEDULES, ElipConfig, Stage
from elip_plugin.errors import ConfigError

LEVELS = 4
"""Levels below the target that `warm_in` passes, 0 (all tokens) included: a compiled model has a
graph for each."""


def level_at(share: float, config: ElipConfig) -> float:
    """Tell how much of the pruning is in force.

    Args:
        share: Share of the training that is done, 0 to 1.
        config: What to prune, with `warm_in` and `full_finish`.

    Returns:
        0 for all tokens, 1 for the config's own counts.
    """
    share += 1e-9  # 3 of 10 steps are 0.3 of a training, in binary too
    if config.full_finish > 0 and share >= 1 - config.full_finish:
        return 0.0
    if share >= config.warm_in:
        return 1.0
    return int(LEVELS * share / config.warm_in) / LEVELS


def text_weight_at(share: float, config: ElipConfig) -> float:
    """Tell how much the text weighs.

    Args:
        share: Share of the training that is done, 0 to 1.
        config: What to prune, with `text_weight` and `text_anneal`.

    Returns:
        The text weight of this moment.
    """
    if config.text_anneal == 0:
        return config.text_weight
    return config.text_weight * max(0.0, 1 - share / config.text_anneal)


def config_at(level: float, config: ElipConfig, num_patches: int) -> ElipConfig:
    """Weaken a configuration.

    Args:
        level: Above 0, up to 1.
        config: What to prune in the end.
        num_patches: Patches N, to which counts are relative.

    Returns:
        The configuration whose stages remove `level` of what they remove in the end.
    """

    def keep(stage: Stage) -> float:
        if isinstance(stage.keep, int):
            return round(num_patches - level * (num_patches - stage.keep))
        return 1 - level * (1 - stage.keep)

    stages = (Stage(stage.block, stage.lookahead, keep(stage)) for stage in config.stages)
    return config if level == 1 else replace(config, stages=tuple(stages))


class Clock:
    """Follows the optimizer that trains a tower.

    Args:
        config: What to prune, with `total_steps`.
        parameters: The tower's weights; an optimizer that has one of them is followed.
    """

    def __init__(self, config: ElipConfig, parameters: Iterable[Tensor]) -> None:
        self.config = config
        self.parameters = list(parameters)
        self.steps = 0
        _follow(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make a copy follow its own optimizer."""
        self.__dict__.update(state)
        _follow(self)

    @property
    def share(self) -> float:
        """Share of the training that is done, from 0."""
        return self.steps / (self.config.total_steps or 1)

    @property
    def level(self) -> float:
        """How much of the pruning is in force."""
        return level_at(self.share, self.config)

    @property
    def text_weight(self) -> float:
        """How much the text weighs."""
        return text_weight_at(self.share, self.config)

    def read(self, optimizer: Optimizer, stepped: bool) -> None:
        """Take the step count of an optimizer, if it trains the tower.

        Args:
            optimizer: One that has made a step, or loaded its state.
            stepped: Whether it has just made a step.

        Raises:
            ConfigError: If it trains the tower, but keeps no count of its steps.
        """
        ours = {id(parameter) for parameter in self.parameters}
        trained = [p for g in optimizer.param_groups for p in g["params"] if id(p) in ours]
        counts = (optimizer.state.get(p, {}).get("step") for p in trained)
        steps = next((count for count in counts if count is not None), None)
        if steps is not None:
            self.steps = int(steps)
        elif stepped and any(p.grad is not None for p in trained):
            raise ConfigError(
                f"{', '.join(SCHEDULES)} follow the optimizer's own step count, and "
                f"{type(optimizer).__name__} keeps none: use Adam, AdamW or the like, or leave "
                "them out"
            )


_clocks: weakref.WeakSet[Clock] = weakref.WeakSet()


def _follow(clock: Clock) -> None:
    _clocks.add(clock)
    _listen()


@functools.cache
def _listen() -> None:
    """Hear of every optimizer's steps, and of states that are loaded."""
    register_optimizer_step_post_hook(lambda optimizer, *_: _tell(optimizer, stepped=True))
    load = Optimizer.load_state_dict

    # Torch has no hook for all optimizers here, and a resumed run must start at its own level.
    @functools.wraps(load)
    def load_state_dict(self: Optimizer, state_dict: Any) -> None:
        load(self, state_dict)
        _tell(self, stepped=False)

    Optimizer.load_state_dict = load_state_dict  # type: ignore[method-assign]


def _tell(optimizer: Optimizer, *, stepped: bool) -> None:
    for clock in list(_clocks):
        clock.read(optimizer, stepped)
