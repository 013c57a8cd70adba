"""What a patched tower carries: its configuration, its plan, and how far the training is."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from elip_plugin.config import ElipConfig
from elip_plugin.core.guide import Guide
from elip_plugin.core.trace import Trace
from elip_plugin.errors import PlanError, UnsupportedModelError
from elip_plugin.patching.calls import find, opened, thread
from elip_plugin.patching.description import TowerShape
from elip_plugin.patching.forward import DEFAULT, Call, Settings
from elip_plugin.patching.progress import TrainingProgress, config_at
from elip_plugin.planning import Plan, plan

INHERITED = "elip_inherited"
"""Attribute of a replica (`torch.nn.DataParallel`): the settings that its caller has opened."""


@functools.lru_cache(maxsize=1024)  # of which a schedule needs five per number of patches
def _plan_at(
    level: float, config: ElipConfig, num_patches: int, depth: int, prefix: int, skip_idle: bool
) -> Plan:
    """Resolve a configuration of which `level` is in force; see `Pruner.plan_for`."""
    config = config_at(level, config, num_patches)
    return plan(config, num_patches=num_patches, depth=depth, prefix=prefix, skip_idle=skip_idle)


class Pruner:
    """Decides when a tower prunes, and by what.

    Holds the configuration, and nothing that changes during a forward. What a caller opens around
    forwards (`guided`, `disabled`, `traced`, ...) holds for those in the caller's thread, and in
    the replicas that `torch.nn.DataParallel` makes there.

    The towers of one model share their progress. `random_blocks` says that looking ahead may not
    call a block by itself. Raises a PlanError if the configuration does not fit the tower, or
    prunes nothing.
    """

    def __init__(
        self,
        config: ElipConfig,
        shape: TowerShape,
        progress: TrainingProgress,
        random_blocks: bool = True,
        norm_name: str = "",
    ) -> None:
        self.config, self.shape = config, shape
        self.reducer = config.method
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
        self.random_blocks = random_blocks
        self.progress = progress
        self._warned: set[str] = set()

    @property
    def settings(self) -> Settings:
        """What is open for this pruner in this thread."""
        return find(self, Settings) or DEFAULT

    def start(self, module: nn.Module, training: bool | None = None) -> Call:
        """Decide whether a call of a model or tower prunes, and by what; the one place that does.

        The schedule counts in training, which is the module's own flag unless it is given;
        evaluation has the configuration's own plan. The call's level is 0 where all tokens are
        kept.
        """
        settings, entry = None, thread.innermost
        while entry is not None and settings is None:
            if entry[0] is self:
                value = entry[1]
                settings = value.settings if isinstance(value, Call) else value
            entry = entry[2]
        outer = module.__dict__.get(INHERITED)  # of a replica, what was open where it was made
        if outer is not None:
            settings = outer if settings is None else settings.inside(outer)
        elif settings is None:
            settings = DEFAULT
        training = module.training if training is None else training
        level, weight = 0.0, 0.0
        if settings.enabled and (training or settings.treat_as_training):
            training, progress = True, self.progress
            if not progress.reported:
                progress.warn_unreported()
            level, weight = progress.level, progress.text_weight
        elif settings.enabled:
            mode = settings.eval_mode or self.config.eval_mode
            level = 0.0 if mode == "full" else 1.0
            weight = self.config.text_weight if mode == "text" else 0.0
        guide = settings.guide
        needs_guide = level > 0 and weight > 0 and guide is None
        return Call(self, self.reducer, settings, level, weight, training, guide, needs_guide)

    def open(self, tower: nn.Module) -> Any:
        """Begin a forward of the whole tower, which `current` then finds in its parts.

        Returns what `calls.thread.innermost` must be set to when the forward ends.
        """
        before = entry = thread.innermost
        while entry is not None and entry[0] is not self:
            entry = entry[2]
        if entry is not None and isinstance(entry[1], Call) and entry[1].tower is None:
            call = replace(entry[1], tower=tower)  # the model's own forward has decided
        else:
            call = self._start_tower(tower)
        thread.innermost = (self, call, before)
        return before

    def _start_tower(self, module: nn.Module) -> Call:
        call = self.start(module)
        if call.needs_guide:
            self._warn_unguided()
            call.level = 0.0
        call.tower = module
        return call

    @contextmanager
    def begin(self, tower: nn.Module) -> Iterator[Call | None]:
        """Begin a forward of the whole tower; yield the call, or None if it keeps all tokens."""
        before = self.open(tower)
        assert thread.innermost is not None
        call: Call = thread.innermost[1]
        try:
            yield call if call.level > 0 else None
        finally:
            thread.innermost = before

    def current(self, module: nn.Module | None = None) -> Call | None:
        """Return the call in progress, for a part of a tower; None if it keeps all tokens.

        Where the tower was not called, `module` begins a call by itself; None then returns None.
        """
        entry = thread.innermost
        while entry is not None and entry[0] is not self:
            entry = entry[2]
        call = None if entry is None else entry[1]
        if not isinstance(call, Call) or call.tower is None:
            if module is None:
                return None
            call = replace(call, tower=module) if isinstance(call, Call) else None
            call = self._start_tower(module) if call is None else call
        return call if call.level > 0 else None

    def plan_for(self, num_patches: int, level: float = 1.0, skip_idle: bool | None = None) -> Plan:
        """Resolve the configuration for N patches, of which `level` (0 to 1) is in force.

        With `skip_idle`, by default below level 1, a stage that would not shrink the sequence is
        left out. Raises a PlanError if the plan cannot hold.
        """
        skip_idle = level < 1 if skip_idle is None else skip_idle
        shape = self.shape
        return _plan_at(level, self.config, num_patches, shape.depth, shape.prefix, skip_idle)

    def step_cost(self, plan: Plan) -> float:
        """Count a training step of the tower by a plan, relative to no pruning."""
        width = self.shape.width
        return plan.forward_cost(width) if self.shape.frozen else plan.train_cost(width)

    def replan(self, num_patches: int) -> None:
        """Make N patches the nominal number, after a change of resolution."""
        self.plan = self.plan_for(num_patches)
        self.num_tokens = self.shape.prefix + num_patches

    def check_guide(self, x: Tensor, guide: Tensor) -> None:
        """Check a guide against the tokens; a `GuideError` if it does not fit."""
        texts = None if self.config.guide_source == "batch" else x.shape[0]
        self.reducer.check_guide(guide, texts, self.shape.width)

    @contextmanager
    def _changed(self, **changes: Any) -> Iterator[None]:
        with opened(self, replace(self.settings, **changes)):
            yield

    def guided(self, guide: Guide) -> AbstractContextManager[None]:
        """Guide the forwards inside the context by what a caller gives."""
        return self._changed(guide=guide)

    @contextmanager
    def traced(self) -> Iterator[Trace]:
        """Record the stages of the forwards inside the context."""
        trace = self.reducer.make_trace(self.shape.prefix)
        with self._changed(trace=trace):
            yield trace

    @contextmanager
    def treated_as_training(self, module: nn.Module) -> Iterator[None]:
        """Prune inside the context as in training if the model trains, also by a frozen tower."""
        settings = find(self, Settings) or module.__dict__.get(INHERITED, DEFAULT)
        with opened(self, replace(settings, treat_as_training=module.training)):
            yield

    def disabled(self) -> AbstractContextManager[None]:
        """Run the forwards inside the context with all tokens."""
        return self._changed(enabled=False)

    def evaluated_by(self, mode: str) -> AbstractContextManager[None]:
        """Evaluate by another `ElipConfig.eval_mode` inside the context."""
        return self._changed(eval_mode=mode)

    def hand_to(self, replica: nn.Module) -> None:
        """Hand what is opened here to a replica of `torch.nn.DataParallel`, for its thread.

        Refuses a guide or a trace, which are for one whole batch.
        """
        settings = find(self, Settings)
        if settings is None:
            return
        for name in ("guide", "trace"):
            if getattr(settings, name) is not None:
                raise UnsupportedModelError(
                    f"a {name} is open around a DataParallel model, which splits its batch among "
                    f"threads: a {name} is for one whole batch. Call the model that it wraps, or "
                    "give images and texts together"
                )
        replica.__dict__[INHERITED] = settings

    def _warn_if_slower(self) -> None:
        width = self.shape.width
        forward, step = self.plan.forward_cost(width), self.step_cost(self.plan)
        if self.config.eval_mode == "image" and forward >= 1:
            warnings.warn(
                f"eval_mode 'image' with this plan is counted at {forward:.2f} of an unpruned "
                "forward: its lookahead costs more than pruning saves; use the 'half' preset or "
                "eval_mode 'full'",
                stacklevel=3,
            )
        if step >= 1:
            warnings.warn(
                f"this plan is counted at {step:.2f} of an unpruned training step: its lookahead "
                "costs more than pruning saves; use the 'half' preset, a lower keep or a shorter "
                "lookahead",
                stacklevel=3,
            )

    def _warn_unguided(self) -> None:
        if "unguided" not in self._warned:
            self._warned.add("unguided")
            warnings.warn(
                "this ELIP tower got images without a text guide, so it keeps all tokens; "
                "call the model with image and text together, or wrap the image call in "
                "`with elip_plugin.guide(model, text_features):`",
                stacklevel=2,
            )
