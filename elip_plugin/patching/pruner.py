"""What a patched tower carries: its configuration, its switches and its text guide."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from elip_plugin.config import ElipConfig
from elip_plugin.core.guide import Reading
from elip_plugin.core.positions import PositionOptions, Positions
from elip_plugin.core.score import Query
from elip_plugin.core.trace import Trace
from elip_plugin.errors import GuideError, PlanError, UnsupportedModelError
from elip_plugin.patching.padding import Padding, on_device, plan_each, trim
from elip_plugin.patching.progress import TrainingProgress, config_at
from elip_plugin.planning import Plan, plan
from elip_plugin.reducers import StageContext, find_reducer

Guide = Tensor | Reading | Callable[[], Tensor | Reading]
"""A text guide [B, D], how a text encoder reads; or what makes either once a forward needs it."""


@dataclass(frozen=True)
class TowerShape:
    """The numbers of a vision tower.

    Attributes:
        num_patches: Patches N at the tower's nominal resolution.
        depth: Number of blocks.
        width: Tower width D.
        prefix: Prefix tokens P.
        class_query: Whether the class token is the query; see `elip_plugin.core.score.score`.
        frozen: Whether no weight of the tower is trained, so that its training step is a forward.
    """

    num_patches: int
    depth: int
    width: int
    prefix: int = 1
    class_query: bool = True
    frozen: bool = False


@dataclass(frozen=True)
class PruningPass:
    """One forward of a tower that prunes: everything resolved, and handed down.

    Attributes:
        pruner: Whose pass it is.
        plan: Tokens in each block, and the stages.
        guide: Text guide, or None where the image alone decides.
        text_weight: Share of the guide in the query token.
        training: Whether the tower is training.
        level: How much of the schedule is in force, 0 to 1.
    """

    pruner: Pruner
    plan: Plan
    guide: Guide | None
    text_weight: float
    training: bool
    level: float = 1.0

    def run_blocks(
        self,
        x: Tensor,
        blocks: Iterable[Any],
        call: Callable[..., Any] | None = None,
        positions: PositionOptions | None = None,
        padding: Padding | None = None,
    ) -> Tensor:
        """Run all blocks of the tower with the reducer's stages.

        Args:
            x: Tokens [B, P + N, D].
            blocks: The tower's blocks.
            call: Runs a main block, where calling it is not enough: `call(block, x)`, or
                `call(block, x, mode, **options)`; see `elip_plugin.patching.blocks`.
            positions: What the blocks are called with for given positions, where they read them at
                every call.
            padding: What differs from image to image; for `run_padded_blocks`.

        Returns:
            Tokens [B, T', D].

        Raises:
            GuideError: If the guide is not [B, D], or not [M, D] for `guide_source: batch`.
            PlanError: If the reducer reads pixels, and they are not those of the tokens.
        """
        pruner, guide, further = self.pruner, self.guide, None
        shape, config = pruner.shape, pruner.config
        if guide is not None:
            guide = guide() if callable(guide) else guide
            if isinstance(guide, Reading):
                further = guide.further and _once(guide.further)
                guide = guide.first
            if guide.shape != (len(x), shape.width):  # most are
                pruner.check_guide(x, guide)
        from_batch = config.guide_source == "batch"
        query = Query(
            shape.prefix, guide, self.text_weight, shape.class_query, from_batch, further=further
        )
        context = StageContext(
            tuple(blocks), query, config.merge, pruner.random_blocks, pruner.trace, self.training
        )
        if pruner.norm is not None:
            context = replace(context, norm=pruner.norm, choice_loss=config.choice_loss)
        if pruner.reducer.reads_pixels:
            patches = pruner.take_patches(x.shape[1] - shape.prefix)
            context = replace(context, patches=patches)
        stages = self.plan.by_block
        if padding is not None and positions is not None:
            stages, every = padding.stages, torch.arange(padding.valid.shape[1], device=x.device)
            every = every.expand(len(x), -1)
            context = context.at(Positions(context.blocks, positions, every, padding.valid))
        elif positions is not None:
            context = context.at(Positions(context.blocks, positions))
        x, context = pruner.reducer.run(x, stages, context, call)
        if padding is not None:
            padding.left = context.query.valid
        return x

    def run_padded_blocks(
        self,
        x: Tensor,
        valid: Tensor,
        blocks: Iterable[Any],
        call: Callable[..., Any] | None,
        positions: PositionOptions,
    ) -> tuple[Tensor, Tensor]:
        """Run all blocks on images with different numbers of patches.

        Each image has the plan of its own number: padding is never kept before a patch, and changes
        nothing.

        Args:
            x: Tokens [B, P + N, D].
            valid: Which of those after the prefix are real [B, N].
            blocks: The tower's blocks.
            call: As for `run_blocks`.
            positions: What the blocks are called with, where some tokens are padding.

        Returns:
            Tokens [B, T', D], and which of those after the prefix are real [B, T' - P].

        Raises:
            GuideError: As for `run_blocks`.
            UnsupportedModelError: If a trace is on, or the reducer loses track of the padding.
        """
        pruner, prefix = self.pruner, self.pruner.shape.prefix
        if pruner.trace is not None:
            raise UnsupportedModelError(
                "a batch of images with different numbers of patches cannot be traced: trace "
                "images [B, 3, height, width]"
            )
        x, valid, counts = trim(x, valid, prefix)
        plan_for = functools.partial(pruner.plan_for, level=self.level, skip_idle=True)
        stages = on_device(plan_each(counts, valid.shape[1], plan_for), x.device)
        padding = Padding(valid, stages)
        x = self.run_blocks(x, blocks, call, positions, padding)
        left = padding.left
        if left is None or left.shape[1] != x.shape[1] - prefix:
            raise UnsupportedModelError(
                f"reducer {pruner.reducer.name!r} does not say which tokens are padding, so it "
                "cannot prune images with different numbers of patches"
            )
        return x, left


def _once(further: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Let the text side read the tokens of a forward's first stage only, which is what costs."""
    found: list[Tensor] = []

    def read(y: Tensor) -> Tensor:
        if not found:
            found.append(further(y))
        return found[0]

    return read


@functools.lru_cache(maxsize=1024)  # of which a schedule needs five per number of patches
def _plan_at(
    level: float, config: ElipConfig, num_patches: int, depth: int, prefix: int, skip_idle: bool
) -> Plan:
    """Resolve a configuration of which `level` is in force; see `Pruner.plan_for`."""
    config = config_at(level, config, num_patches)
    return plan(config, num_patches=num_patches, depth=depth, prefix=prefix, skip_idle=skip_idle)


class Pruner:
    """Decides when a tower prunes, and by what.

    Holds no parameter and nothing of a forward: the guide is set only inside `guided`.

    Args:
        config: What to prune.
        shape: The tower.
        progress: How far the training is; shared by the towers of one model.
        random_blocks: Whether looking ahead may not call a block by itself.
        norm: The tower's last norm, if it has one.

    Raises:
        PlanError: If the configuration does not fit the tower, or prunes nothing.
        UnsupportedModelError: If the reducer needs the last norm, and there is none.
    """

    def __init__(
        self,
        config: ElipConfig,
        shape: TowerShape,
        progress: TrainingProgress,
        random_blocks: bool = True,
        norm: nn.Module | None = None,
    ) -> None:
        self.config, self.shape = config, shape
        self.reducer = find_reducer(config.reducer)
        self.norm = norm if self.reducer.compares else None
        if self.reducer.compares and norm is None:
            raise UnsupportedModelError(
                f"reducer {config.reducer!r} compares the tokens with the text after the tower's "
                "last norm, which this tower does not have: use another reducer"
            )
        self.plan = plan(
            config, num_patches=shape.num_patches, depth=shape.depth, prefix=shape.prefix
        )
        if not self.plan.stages:
            raise PlanError(
                "this ELIP config prunes nothing: it has no stage with keep below 1.0; add one, "
                "or use the unpruned model"
            )
        self._warn_if_slower()
        self.random_blocks = random_blocks
        self.progress = progress
        self.eval_mode = config.eval_mode
        self.enabled = True
        self.guide: Guide | None = None
        self.trace: Trace | None = None
        self.trains = False
        self.patches: Tensor | None = None
        self._warned = False

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to a forward: a copy or a pickle made during one starts clean."""
        return {**self.__dict__, "guide": None, "trace": None, "patches": None, "trains": False}

    def begin(self, num_patches: int, training: bool) -> PruningPass | None:
        """Resolve what a forward prunes; warn once where its guide is missing.

        Args:
            num_patches: Patches N that enter block 0, after any patch dropout.
            training: The tower's `training` flag: the schedule counts in training, evaluation has
                the config's own plan.

        Returns:
            The pass; None if this forward runs all tokens. PlanError if the plan cannot hold.
        """
        progress, training = self.progress, training or self.trains
        level = progress.level if training else 1.0
        if not self.enabled or (not training and self.eval_mode == "full"):
            return None
        if training and not progress.reported:
            progress.warn_unreported()
        if level == 0:
            return None
        guide, weight = None, progress.text_weight if training else self.config.text_weight
        if weight > 0 and (training or self.eval_mode == "text"):
            guide = self.guide
            if guide is None:
                self._warn_unguided()
                return None
        planned = self.plan
        if num_patches != planned.num_patches or level != 1:
            planned = self.plan_for(num_patches, level)
        return PruningPass(self, planned, guide, weight, training, level)

    def is_active(self, training: bool) -> bool:
        """Return whether a forward is pruned, if no guide is missing."""
        if not self.enabled:
            return False
        return self.progress.level > 0 if training or self.trains else self.eval_mode != "full"

    def take_patches(self, present: int) -> Tensor:
        """Return the pixels of the patches that this forward embedded, and forget them."""
        patches, self.patches = self.patches, None
        if patches is None:
            raise PlanError(
                f"reducer {self.reducer.name!r} needs the pixels of the patches, but this forward "
                "did not pass the patch embedding that was there when ELIP was applied: run the "
                "tower on images, and apply ELIP anew after changing its patch size"
            )
        rows, columns = patches.shape[2:4]
        if rows * columns != present:
            raise PlanError(
                f"reducer {self.reducer.name!r} needs a token for each patch, but {present} of "
                f"{rows} x {columns} are left: build the model without patch dropout"
            )
        return patches

    def wants_guide(self, training: bool) -> bool:
        """Return whether a text guide would be used, in training or in evaluation."""
        if not self.enabled:
            return False
        if training:
            return self.progress.level > 0 and self.progress.text_weight > 0
        return self.eval_mode == "text" and self.config.text_weight > 0

    def plan_for(self, num_patches: int, level: float = 1.0, skip_idle: bool | None = None) -> Plan:
        """Resolve the configuration for N patches.

        Args:
            num_patches: Patches N.
            level: How much of the schedule is in force, 0 to 1.
            skip_idle: Whether a stage that would not shrink the sequence is left out; by default
                where less than the whole schedule is in force.

        Returns:
            The plan; PlanError if it cannot hold.
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

    def check_guide(self, x: Tensor, guide: Tensor) -> None:
        """Check a guide against the tokens."""
        shared, width = self.config.guide_source == "batch", self.shape.width
        several = self.reducer.compares and guide.ndim == 3 and not shared
        if (
            guide.ndim != 2 + several
            or guide.shape[-1] != width
            or not (shared or len(guide) == len(x))
        ):
            rows = "texts" if shared else x.shape[0]
            raise GuideError(
                f"the text guide has shape {tuple(guide.shape)}, but this tower and batch need "
                f"({rows}, {width}): one row per {'text' if shared else 'image'}, one column "
                "per tower channel"
            )

    @contextmanager
    def _set(self, name: str, value: Any) -> Iterator[None]:
        before = getattr(self, name)
        setattr(self, name, value)
        try:
            yield
        finally:
            setattr(self, name, before)

    @contextmanager
    def guided(self, guide: Guide | None) -> Iterator[None]:
        """Set the text guide inside the context; None leaves an outer guide in place."""
        before = self.guide
        self.guide = before if guide is None else guide
        try:
            yield
        finally:
            self.guide = before

    @contextmanager
    def traced(self) -> Iterator[Trace]:
        """Record the stages of the forwards inside the context."""
        if not self.reducer.traceable:
            raise UnsupportedModelError(
                f"reducer {self.reducer.name!r} records nothing, so it cannot be traced; the "
                "built-in reducers can"
            )
        with self._set("trace", Trace(self.shape.prefix)):
            assert self.trace is not None
            yield self.trace

    @contextmanager
    def trained(self, training: bool) -> Iterator[None]:
        """Prune as in training inside the context, if `training`, also a tower that is frozen.

        Args:
            training: Whether the model that the tower belongs to is training.
        """
        with self._set("trains", training):
            yield

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Run the forwards inside the context with all tokens."""
        with self._set("enabled", False):
            yield

    @contextmanager
    def evaluated_by(self, mode: str) -> Iterator[None]:
        """Evaluate by another `ElipConfig.eval_mode` inside the context."""
        with self._set("eval_mode", mode):
            yield

    def _warn_if_slower(self) -> None:
        width = self.shape.width
        forward, step = self.plan.forward_cost(width), self.step_cost(self.plan)
        if self.config.eval_mode == "image" and forward >= 1:
            warnings.warn(
                f"eval_mode 'image' with this plan is counted at {forward:.2f} of an unpruned "
                "forward: its lookahead costs more than pruning saves; use the 'fast' preset or "
                "eval_mode 'full'",
                stacklevel=3,
            )
        if step >= 1:
            warnings.warn(
                f"this plan is counted at {step:.2f} of an unpruned training step: its lookahead "
                "costs more than pruning saves; use the 'fast' preset, a lower keep or a shorter "
                "lookahead",
                stacklevel=3,
            )

    def _warn_unguided(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                "this ELIP tower got images without a text guide, so it keeps all tokens; "
                "call the model with image and text together, or wrap the image call in "
                "`with elip_plugin.guide(model, text_features):`",
                stacklevel=2,
            )
