"""What a patched tower carries: its configuration, its switches and the guide of the moment."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from elip_plugin.config import SCHEDULES, ElipConfig
from elip_plugin.core.guide import by_similarity
from elip_plugin.core.score import asking
from elip_plugin.core.trace import Trace
from elip_plugin.errors import GuideError, PlanError, UnsupportedModelError
from elip_plugin.patching.progress import Clock, config_at
from elip_plugin.planning import Plan, PlannedStage, plan
from elip_plugin.reducers import STAGES, tome
from elip_plugin.reducers.base import Moment

Guide = Tensor | Callable[[], Tensor]
"""A text guide [B, D], detached; or what gives it when the first stage asks."""


class Pruner:
    """Decide when a tower prunes, and run its stages.

    Holds no parameter and nothing of a forward: the guide is set only inside `guided`.

    Args:
        config: What to prune.
        num_patches: Patches N at the tower's nominal resolution.
        depth: Number of blocks.
        width: Tower width D.
        prefix: Prefix tokens P.
        class_query: Whether the class token asks; see `elip_plugin.core.score.score`.

    Raises:
        PlanError: If the configuration does not fit the tower, or prunes nothing.
    """

    def __init__(
        self,
        config: ElipConfig,
        *,
        num_patches: int,
        depth: int,
        width: int,
        prefix: int = 1,
        class_query: bool = True,
    ) -> None:
        self.config = config
        self.width = width
        self.class_query = class_query
        self.plan = plan(config, num_patches=num_patches, depth=depth, prefix=prefix)
        if not self.plan.stages:
            raise PlanError(
                "this ELIP config prunes nothing: it has no stage with keep below 1.0; add one, "
                "or use the unpruned model"
            )
        self._warn_if_dear()
        self.clock: Clock | None = None
        self.enabled = True
        self._guide: Guide | None = None
        self._trace: Trace | None = None
        self._warned = False

    def __getstate__(self) -> dict[str, Any]:
        """Leave out guide and trace: a copy or a pickle made in mid-forward starts clean."""
        return {**self.__dict__, "_guide": None, "_trace": None}

    def wants_guide(self, training: bool) -> bool:
        """Tell whether a text guide would be used.

        Args:
            training: The tower's `training` flag.

        Returns:
            True in training, and in evaluation under `eval: text`, unless disabled.
        """
        mode = self.level > 0 if training else self.config.eval == "text"
        return self.enabled and mode and self.text_weight(training) > 0

    def active(self, training: bool) -> bool:
        """Tell whether this forward prunes; warn once where its guide is missing.

        Args:
            training: The tower's `training` flag.

        Returns:
            True if the tower must run its stages.
        """
        if not self.enabled or (training and self.level == 0):
            return False
        if self.wants_guide(training):
            if self._guide is None:
                self._warn_unguided()
            return self._guide is not None
        return training or self.config.eval != "full"

    def follow(self, parameters: Iterable[Tensor]) -> None:
        """Follow the optimizer that trains these weights, if the config has a schedule.

        Args:
            parameters: The tower's weights.
        """
        if any(getattr(self.config, name) > 0 for name in SCHEDULES):
            self.clock = Clock(self.config, parameters)

    @property
    def level(self) -> float:
        """How much of the pruning is in force in training, 0 to 1."""
        return 1.0 if self.clock is None else self.clock.level

    def text_weight(self, training: bool) -> float:
        """Tell how much the text weighs now.

        Args:
            training: Whether the schedule counts; evaluation has the config's own weight.

        Returns:
            Share of the guide in the probing class token.
        """
        if training and self.clock is not None:
            return self.clock.text_weight
        return self.config.text_weight

    def plan_for(self, num_patches: int, training: bool = False) -> Plan:
        """Resolve the configuration for the patches really present, and the moment.

        Args:
            num_patches: Patches N that enter block 0, after any patch dropout.
            training: Whether the schedule counts; evaluation has the config's own plan.

        Returns:
            The plan; PlanError if it cannot hold.
        """
        level = self.level if training else 1.0
        if num_patches == self.plan.num_patches and level == 1:
            return self.plan
        return plan(
            config_at(level, self.config, num_patches),
            num_patches=num_patches,
            depth=self.plan.depth,
            prefix=self.prefix,
            skip_idle=level < 1,
        )

    def replan(self, num_patches: int) -> None:
        """Make another patch count the nominal one, after a change of resolution.

        Args:
            num_patches: Patches N that enter block 0.
        """
        self.plan = self.plan_for(num_patches)

    def run_blocks(
        self,
        x: Tensor,
        blocks: nn.ModuleList | nn.Sequential,
        training: bool,
        checkpointing: bool,
    ) -> Tensor:
        """Run all blocks of a tower with the stages between them.

        Args:
            x: Tokens [B, P + N, D].
            blocks: The tower's blocks.
            training: The tower's `training` flag.
            checkpointing: Whether backward computes each block anew; stages stay outside
                of that, or it would choose again when the guide is gone.

        Returns:
            Tokens [B, T', D].
        """
        plan = self.plan_for(x.shape[1] - self.prefix, training)
        if self.config.reducer == "tome":
            return tome.run_blocks(x, blocks, plan, checkpointing)
        stages = {stage.block: stage for stage in plan.stages}
        for i, block in enumerate(blocks):
            if i in stages:
                x = self.run(x, stages[i], blocks, training)
            x = checkpoint(block, x, use_reentrant=False) if checkpointing else block(x)
        return x

    def run(
        self,
        x: Tensor,
        stage: PlannedStage,
        blocks: nn.ModuleList | nn.Sequential,
        training: bool,
    ) -> Tensor:
        """Run one stage on the tokens that are about to enter its block.

        Args:
            x: Tokens [B, T, D].
            stage: The planned stage; T must be its `tokens_in`.
            blocks: All blocks of the tower.
            training: The tower's `training` flag.

        Returns:
            Tokens [B, tokens_out, D].

        Raises:
            GuideError: If the guide is not [B, D], or not [M, D] under `guide: batch`.
        """
        guide = self._guide if self.wants_guide(training) else None
        if callable(guide):
            guide = guide()
        if guide is not None:
            guide = self._guide_for(x, guide)
        moment = Moment(
            stage=stage,
            config=self.config,
            guide=guide,
            text_weight=self.text_weight(training),
            blocks=[blocks[i] for i in range(stage.block, stage.block + stage.lookahead)],
            prefix=self.prefix,
            class_query=self.class_query,
            trace=self._trace,
        )
        return STAGES[self.config.reducer](x, moment)

    def _guide_for(self, x: Tensor, guide: Tensor) -> Tensor:
        """Check the guide; make one row per image of a whole batch's texts."""
        shared = self.config.guide == "batch"
        if guide.ndim != 2 or guide.shape[1] != self.width or not (shared or len(guide) == len(x)):
            rows = "texts" if shared else x.shape[0]
            raise GuideError(
                f"the text guide has shape {tuple(guide.shape)}, but this tower and batch need "
                f"({rows}, {self.width}): one row per {'text' if shared else 'image'}, one column "
                "per tower channel"
            )
        return by_similarity(asking(x, self.prefix, self.class_query), guide) if shared else guide

    @contextmanager
    def guided(self, guide: Guide | None) -> Iterator[None]:
        """Set the text guide for the forwards inside the context.

        Args:
            guide: Text guide [B, D], detached, or a function that gives it and may be called
                once per stage; None to leave an outer guide in place.

        Yields:
            Nothing; the previous guide returns at the end, also after an exception.
        """
        before = self._guide
        if guide is not None:
            self._guide = guide
        try:
            yield
        finally:
            self._guide = before

    @contextmanager
    def traced(self) -> Iterator[Trace]:
        """Record the stages of the forwards inside the context.

        Yields:
            The trace, which is filled as forwards run.

        Raises:
            UnsupportedModelError: If the tower merges inside its blocks.
        """
        if self.config.reducer == "tome":
            raise UnsupportedModelError(
                "reducer 'tome' merges inside every block and cannot be traced; the others can"
            )
        before, self._trace = self._trace, Trace(self.prefix)
        try:
            yield self._trace
        finally:
            self._trace = before

    @property
    def prefix(self) -> int:
        """Prefix tokens P, never pruned."""
        return self.plan.prefix

    @property
    def has_guide(self) -> bool:
        """Whether a guide is set at this moment."""
        return self._guide is not None

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Run the forwards inside the context with all tokens.

        Yields:
            Nothing; the previous state returns at the end, also after an exception.
        """
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before

    def _warn_if_dear(self) -> None:
        forward, step = self.plan.forward_cost(self.width), self.plan.train_cost(self.width)
        if self.config.eval == "image" and forward >= 1:
            warnings.warn(
                f"eval 'image' with this plan is counted at {forward:.2f} of an unpruned forward: "
                "its lookahead costs more than pruning saves; use the 'fast' preset or eval 'full'",
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
