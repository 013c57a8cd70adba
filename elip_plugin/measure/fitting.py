"""What makes a training step fit a memory: precision, gradient checkpointing, pruning."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from elip_plugin.config import ElipConfig
from elip_plugin.errors import PlanError, UnsupportedModelError
from elip_plugin.hosts.base import HostModel
from elip_plugin.measure.memory import PRECISIONS, StepMemory, check_precisions, count_memory
from elip_plugin.measure.preview import reprune, weakest
from elip_plugin.measure.variants import UNPRUNED
from elip_plugin.patching.install import find_pruner
from elip_plugin.planning import Plan

TRIES = 4


@dataclass(frozen=True)
class Way:
    """One way to train, and its memory without pruning and by the model's plan."""

    precision: str
    checkpointing: bool
    unpruned: StepMemory
    pruned: StepMemory

    @property
    def name(self) -> str:
        """Name of the way, for the reader."""
        return self.precision + (", checkpoint" if self.checkpointing else "")


def count_ways(
    host_model: HostModel,
    precisions: Sequence[str] = PRECISIONS,
    *,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Way]:
    """Count the memory in each precision, without checkpointing and, where there is any, with."""
    check_precisions(precisions)
    ways = []
    for precision in precisions:
        for checkpointing in (False, True):
            progress(f"counting {precision}{', checkpoint' if checkpointing else ''}")
            try:
                memory = [
                    count_memory(
                        host_model,
                        variant=variant,
                        precision=precision,
                        checkpointing=checkpointing,
                    )
                    for variant in (UNPRUNED, "")
                ]
            except UnsupportedModelError:
                if not checkpointing:
                    raise
                continue
            ways.append(Way(precision, checkpointing, *memory))
    return ways


def prune_to_fit(
    host_model: HostModel, way: Way, batch: int, budget: int
) -> tuple[ElipConfig, StepMemory] | None:
    """Find keep ratios of the model's stages by which a batch fits a budget, close to the weakest.

    The model is built on the device "meta". Returns the configuration and its memory, if any is
    found.
    """
    pruner = find_pruner(host_model.model)
    depth, shape = pruner.shape.depth, pruner.shape
    full = depth * (shape.prefix + shape.num_patches), way.unpruned.peak_at(batch)
    known = sum(pruner.plan.tokens), way.pruned.peak_at(batch)
    for _ in range(TRIES):
        # Memory is nearly a line in the tokens: through no pruning and what was counted last.
        per_token = (full[1] - known[1]) / (full[0] - known[0])
        if per_token <= 0:
            return None  # the optimizer's update takes the most, whatever is pruned
        tokens = full[0] - (full[1] - budget) / per_token
        try:
            config = weakest(pruner, partial(_has_at_most, tokens))
        except PlanError:
            return None
        model = _with_config(host_model, config)
        counted = count_memory(model, precision=way.precision, checkpointing=way.checkpointing)
        if counted.peak_at(batch) <= budget:
            return config, counted
        known = sum(find_pruner(model.model).plan.tokens), counted.peak_at(batch)
    return None


def _has_at_most(tokens: float, plan: Plan) -> bool:
    return sum(plan.tokens) <= tokens


def _with_config(host_model: HostModel, config: ElipConfig) -> HostModel:
    copied = replace(host_model, model=copy.deepcopy(host_model.model))
    reprune(copied, config)
    return copied
