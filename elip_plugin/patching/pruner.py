"""What a patched tower carries: its configuration, its plan, and how far the training is."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from elip_plugin.config import ElipConfig
from elip_plugin.core.context import PositionOptions, StageContext
from elip_plugin.core.guide import Guide, TextQueries, check_guide
from elip_plugin.core.precision import uncached
from elip_plugin.errors import PlanError, UnsupportedModelError
from elip_plugin.patching.calls import find, opened, thread
from elip_plugin.patching.description import TowerShape
from elip_plugin.patching.forward import Forward
from elip_plugin.patching.progress import TrainingProgress, config_at
from elip_plugin.planning import Plan, plan


@functools.lru_cache(maxsize=1024)  # of which a schedule needs five per number of patches
def _plan_at(level: float, config: ElipConfig, num_patches: int, depth: int, prefix: int) -> Plan:
    """Resolve a configuration of which `level` is in force; see `Pruner.plan_for`."""
    config = config_at(level, config, num_patches)
    return plan(config, num_patches=num_patches, depth=depth, prefix=prefix, skip_idle=level < 1)


class Pruner:
    """Decides when a tower prunes, and by what.

    Holds the configuration, and nothing that changes during a forward. What a caller asks for
    around forwards (`asked`) holds for those in the caller's thread.

    The towers of one model share their progress. Raises a PlanError if the configuration does not
    fit the tower, or prunes nothing.
    """

    def __init__(
        self,
        config: ElipConfig,
        shape: TowerShape,
        progress: TrainingProgress,
        norm_name: str = "",
        *,
        restores: bool = False,
    ) -> None:
        self.config, self.shape = config, shape
        merges = config.merge and config.reducer.merges
        self.restores = merges and (restores if config.restore is None else config.restore)
        self.reducer = config.reducer
        self.norm_name = norm_name
        self.plan = plan(
            config, num_patches=shape.num_patches, depth=shape.depth, prefix=shape.prefix
        )
        if not self.plan.stages:
            raise PlanError(
                "this ELIP config prunes nothing: it has no stage with keep below 1.0; add one, "
                "or use the unpruned model"
            )
        self._warn_if_slower()
        self.num_tokens = shape.prefix + self.plan.num_patches
        self.progress = progress
        self.trained = False
        self._warned: set[str] = set()

    # Forwards.

    @contextmanager
    def asked(self, **asked: Any) -> Iterator[None]:
        """Ask something of the forwards inside the context; see `Forward` for what."""
        forward = find(self, Forward) or Forward()
        with opened(self, replace(forward, level=None, tower=None, **asked)):
            yield

    def decide(
        self, module: nn.Module, training: bool | None = None, *, guided: bool = False
    ) -> Forward:
        """Decide whether a forward of a model or tower prunes; the one place that does.

        The schedule counts in training, which is the module's own flag unless it is given;
        evaluation has the configuration's own plan. Where the forward must be `guided` already, all
        tokens are kept without a guide, with a warning.
        """
        entry = thread.innermost
        while entry is not None and entry[0] is not self:
            entry = entry[2]
        forward = Forward()
        if entry is not None:
            forward = replace(entry[1], model_guide=None, tower=None, context=None)
        forward.training = module.training if training is None else training
        level, weight = 0.0, 0.0
        if forward.enabled and forward.training:
            progress = self.progress
            if not progress.reported:
                progress.warn_unreported()
            level, weight = progress.level, progress.text_weight
            self.trained = True
        elif forward.enabled:
            mode = forward.eval_mode or self.config.eval_mode
            level = 0.0 if mode == "full" else 1.0
            weight = self.config.text_weight if mode == "text" else 0.0
            if level == 0 and forward.eval_mode is None:
                self.warn_unpruned()
        use, scheduled = forward.guide_use, forward.training and self.progress.scheduled
        if use is not None and (weight > 0 or scheduled):
            use.used = True
        if guided and level > 0 and weight > 0 and forward.guide is None:
            level = 0.0
            self._warn_once(
                "this ELIP tower got images without a text guide, so it keeps all tokens; call the "
                "model with image and text together, or wrap the image call in "
                "`with elip_plugin.find_handle(model).guide(text_features):`"
            )
        forward.level, forward.text_weight = level, weight
        return forward

    @contextmanager
    def guided(self, forward: Forward, guide: Guide) -> Iterator[None]:
        """Guide the tower's forwards inside the context, as a model's forward does."""
        with opened(self, replace(forward, model_guide=guide)):
            yield

    def begin(
        self, forward: Forward, x: Tensor, positions: PositionOptions | None = None
    ) -> StageContext:
        """Resolve what the stages of this forward need.

        Args:
            forward: The forward.
            x: Tokens [B, P + N, D] that enter the first block.
            positions: What blocks are called with for positions, if they read them.

        Returns:
            The context.

        Raises:
            GuideError: If the guide is not [B, D], or not [M, D] for `guide_source: batch`.
            PlanError: If the plan cannot hold for N patches.
        """
        level, shape, config, reducer = forward.level, self.shape, self.config, self.reducer
        assert level is not None
        if level == 1 and x.shape[1] == self.num_tokens:
            forward.stages = self.plan.by_block
        else:
            forward.stages = self.plan_for(x.shape[1] - shape.prefix, level).by_block
        guide: Any = None
        further, from_batch = None, config.guide_source == "batch"
        if forward.text_weight > 0:
            guide = forward.model_guide if forward.guide is None else forward.guide
            if not isinstance(guide, Tensor):
                guide = reducer.read_guide(guide, training=forward.training)
            if isinstance(guide, TextQueries):
                guide, further = guide.first, guide.further and _once(guide.further)
            if guide.shape != (x.shape[0], shape.width):  # most are
                texts = None if from_batch else x.shape[0]
                check_guide(guide, texts, shape.width, several=reducer.text_alone)
        if forward.trace is not None:
            forward.trace.begin()
        norm = self.norm_name
        forward.context = StageContext(
            shape.prefix,
            guide,
            forward.text_weight,
            shape.class_query,
            from_batch,
            further,
            merge=config.merge,
            restore=self.restores,
            training=forward.training,
            trace=forward.trace,
            norm=attrgetter(norm)(forward.tower) if norm else None,
            patches=forward.patches,
            positions=positions,
            cache=uncached(x),
        )
        return forward.context

    # Plans.

    def plan_for(self, num_patches: int, level: float = 1.0) -> Plan:
        """Resolve the configuration for N patches, of which `level` (0 to 1) is in force.

        Below level 1 a stage that would not shrink the sequence is left out. Raises a PlanError if
        the plan cannot hold.
        """
        return _plan_at(level, self.config, num_patches, self.shape.depth, self.shape.prefix)

    def step_cost(self, plan: Plan) -> float:
        """Count a training step of the tower by a plan, relative to no pruning."""
        width = self.shape.width
        return plan.forward_cost(width) if self.shape.frozen else plan.train_cost(width)

    def replan(self, num_patches: int) -> None:
        """Make N patches the nominal number, after a change of resolution."""
        self.plan = self.plan_for(num_patches)
        self.num_tokens = self.shape.prefix + num_patches

    def refuse_replicas(self) -> None:
        """Refuse replicas of `torch.nn.DataParallel` inside of what a caller has opened."""
        if find(self, Forward) is not None:
            raise UnsupportedModelError(
                "`handle.guide()`, `handle.trace()` or `handle.disabled()` is open around a "
                "DataParallel model, and does not hold in the threads among which that splits its "
                "batch: call the model that it wraps, or use DistributedDataParallel"
            )

    def _warn_if_slower(self) -> None:
        costs = {"training step": self.step_cost(self.plan)}
        if self.config.eval_mode == "image":
            costs["forward"] = self.plan.forward_cost(self.shape.width)
        for name, cost in costs.items():
            if cost >= 1:
                warnings.warn(
                    f"this plan is counted at {cost:.2f} of an unpruned {name}: its lookahead "
                    "costs more than pruning saves; use the 'half' preset, a lower keep or a "
                    "shorter lookahead",
                    stacklevel=3,
                )

    def warn_unpruned(self) -> None:
        """Warn once of an evaluation that keeps all tokens, unless a training came before it."""
        if not torch.compiler.is_compiling() and not self.trained:
            self._warn_once(
                "this model is in evaluation, and its plan prunes training alone: eval_mode "
                "'image' prunes both, and run inside `handle.disabled()` nothing is said"
            )

    def warn_unused(self) -> None:
        """Warn once of a text that a caller gave and no forward used."""
        reads = "evaluation reads one with eval_mode 'text' alone, training in every forward"
        why = reads if self.config.text_weight > 0 else "this plan reads none"
        self._warn_once(f"no forward inside `handle.guide` used its text: {why}")

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(text, stacklevel=3)


def _once(further: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Let the text side read the tokens of a forward's first stage only, which is what costs."""
    found: list[Tensor] = []

    def read(y: Tensor) -> Tensor:
        if not found:
            found.append(further(y))
        return found[0]

    return read
