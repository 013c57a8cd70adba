"""One forward of a model and its tower: what a caller asks of it, and what was decided for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from elip_plugin.core.context import StageContext
from elip_plugin.core.guide import Guide
from elip_plugin.core.stage import PlannedStage
from elip_plugin.core.trace import Trace


class GuideUse:
    """Whether any forward has used a caller's guide."""

    used = False


@dataclass
class Forward:
    """What holds for the forwards of a tower in this thread.

    `Pruner.asked` opens one with what a caller asks for. `Pruner.decide` makes one for a forward of
    the model, or of the tower by itself; it is gone when that ends.

    Attributes:
        enabled: Whether anything is pruned.
        guide: A caller's guide, in place of the one that the model makes.
        eval_mode: In place of the configuration's.
        guide_use: Is told when a plan reads the caller's guide.
        trace: Records what each stage does.
        level: How much of the plan is in force, 0 (all tokens) to 1; None: nothing is decided.
        text_weight: Share of the guide in the choice; 0: the image alone decides.
        training: Whether the forward is one of training.
        model_guide: The guide that the model makes; None where there is none yet.
        tower: The tower in progress, or its replica; None: not yet.
        patches: Pixels of the patches, for reducers that read them.
        context: What the reducer decides by; None before the first block that it runs.
        stages: The stages of the plan by their block.
        exported: Whether the tower is being exported, and was given images alone.
    """

    enabled: bool = True
    guide: Guide | None = None
    guide_use: GuideUse | None = None
    eval_mode: str | None = None
    trace: Trace | None = None
    level: float | None = None
    text_weight: float = 0.0
    training: bool = False
    model_guide: Guide | None = None
    tower: nn.Module | None = None
    patches: Tensor | None = None
    context: StageContext | None = None
    stages: Mapping[int, PlannedStage] = field(default_factory=dict)
    exported: bool = False

    @property
    def needs_guide(self) -> bool:
        """Whether a text decides, and there is no guide yet."""
        guided = self.guide is not None or self.model_guide is not None
        return bool(self.level) and self.text_weight > 0 and not guided
