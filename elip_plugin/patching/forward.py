"""One forward of a model and its tower: what a caller asks of it, and what was decided for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from elip_plugin.core.context import StageContext
from elip_plugin.core.guide import Guide, TextQueries, check_guide
from elip_plugin.core.positions import PositionOptions
from elip_plugin.core.precision import uncached
from elip_plugin.core.stage import PlannedStage
from elip_plugin.core.trace import Trace
from elip_plugin.errors import PlanError
from elip_plugin.patching.calls import opened

if TYPE_CHECKING:
    from elip_plugin.patching.pruner import Pruner


@dataclass
class Forward:
    """What holds for the forwards of a tower in this thread.

    `Pruner.asked` opens one with what a caller asks for. `Pruner.decide` makes one for a forward of
    the model, or of the tower by itself; it is gone when that ends.

    Attributes:
        pruner: Whose towers' forwards.
        enabled: Whether anything is pruned.
        guide: A caller's guide, in place of the one that the model makes.
        eval_mode: In place of the configuration's.
        trace: Records what each stage does.
        as_training: Whether a tower in evaluation mode is part of a model that trains.
        level: How much of the plan is in force, 0 (all tokens) to 1; None: nothing is decided.
        text_weight: Share of the guide in the choice; 0: the image alone decides.
        training: Whether the forward is one of training.
        model_guide: The guide that the model makes; None where there is none yet.
        skip_idle: Whether stages that would not shrink the sequence are left out.
        tower: The tower in progress, or its replica; None: not yet.
        patches: Pixels of the patches, for reducers that read them.
        context: What the reducer decides by; None before the first block that it runs.
        stages: The stages of the plan by their block.
    """

    pruner: Pruner
    enabled: bool = True
    guide: Guide | None = None
    eval_mode: str | None = None
    trace: Trace | None = None
    as_training: bool = False
    level: float | None = None
    text_weight: float = 0.0
    training: bool = False
    model_guide: Guide | None = None
    skip_idle: bool | None = None
    tower: nn.Module | None = None
    patches: Tensor | None = None
    context: StageContext | None = None
    stages: Mapping[int, PlannedStage] = field(default_factory=dict)

    @property
    def needs_guide(self) -> bool:
        """Whether a text decides, and there is no guide yet."""
        guided = self.guide is not None or self.model_guide is not None
        return bool(self.level) and self.text_weight > 0 and not guided

    def inside(self, outer: Forward) -> Forward:
        """Return what is asked for here, and where nothing is, what the outer one asks for."""
        asked = {name: getattr(self, name) for name in ASKED}
        asked = {name: value for name, value in asked.items() if value is not ASKED[name]}
        return replace(outer, **asked)

    @contextmanager
    def guided(self, guide: Guide) -> Iterator[None]:
        """Guide the tower's forwards inside the context, as a model's forward does."""
        with opened(self.pruner, replace(self, model_guide=guide)):
            yield

    def parts(self, groups: Sequence[Tensor]) -> Iterator[Forward]:
        """Yield a forward for each group of the batch's images, by their indices."""
        guided = self.text_weight > 0 and self.pruner.config.guide_source == "caption"
        guide: Any = self.model_guide if self.guide is None else self.guide
        if guided and isinstance(guide, Tensor):
            images, width = sum(map(len, groups)), self.pruner.shape.width
            check_guide(guide, images, width, several=self.pruner.reducer.text_alone)
        for rows in groups:
            part = replace(self, context=None, skip_idle=True)
            if guided and isinstance(guide, Tensor):
                part.guide = guide[rows]
            yield part

    def begin(self, x: Tensor, positions: PositionOptions | None = None) -> StageContext:
        """Resolve what the stages of this forward need.

        Args:
            x: Tokens [B, P + N, D] that enter the first block.
            positions: What blocks are called with for positions, if they read them.

        Returns:
            The context.

        Raises:
            GuideError: If the guide is not [B, D], or not [M, D] for `guide_source: batch`.
            PlanError: If the plan cannot hold for N patches.
        """
        pruner, level = self.pruner, self.level
        shape, config, reducer = pruner.shape, pruner.config, pruner.reducer
        assert level is not None
        if level == 1 and x.shape[1] == pruner.num_tokens and not self.skip_idle:
            self.stages = pruner.plan.by_block
        else:
            try:
                plan = pruner.plan_for(x.shape[1] - shape.prefix, level, self.skip_idle)
                self.stages = plan.by_block
            except PlanError:
                if not self.skip_idle:
                    raise  # else some images of the batch are of a few patches, which stay
        guide: Any = None
        further, from_batch = None, config.guide_source == "batch"
        if self.text_weight > 0:
            guide = self.model_guide if self.guide is None else self.guide
            if not isinstance(guide, Tensor):
                guide = reducer.read_guide(guide, training=self.training)
            if isinstance(guide, TextQueries):
                guide, further = guide.first, guide.further and _once(guide.further)
            if guide.shape != (x.shape[0], shape.width):  # most are
                texts = None if from_batch else x.shape[0]
                check_guide(guide, texts, shape.width, several=reducer.text_alone)
        if self.trace is not None:
            self.trace.begin()
        norm = pruner.norm_name
        self.context = StageContext(
            shape.prefix,
            guide,
            self.text_weight,
            shape.class_query,
            from_batch,
            further,
            merge=config.merge,
            training=self.training,
            trace=self.trace,
            norm=attrgetter(norm)(self.tower) if norm else None,
            patches=self.patches,
            positions=positions,
            cache=uncached(x),
        )
        return self.context


ASKED = {
    each.name: each.default
    for each in fields(Forward)
    if each.name in ("enabled", "guide", "eval_mode", "trace", "as_training")
}
"""What a caller may ask for, and what holds where nothing is asked for."""


def _once(further: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Let the text side read the tokens of a forward's first stage only, which is what costs."""
    found: list[Tensor] = []

    def read(y: Tensor) -> Tensor:
        if not found:
            found.append(further(y))
        return found[0]

    return read
