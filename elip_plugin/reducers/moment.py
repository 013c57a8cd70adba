"""What a reducer knows when a stage comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from elip_plugin.config import ElipConfig
from elip_plugin.planning import PlannedStage


@dataclass(frozen=True)
class Moment:
    """A stage, and what is there to decide by.

    Attributes:
        stage: The planned stage.
        config: What to prune.
        guide: Text guide [B, D], or None.
        text_weight: Share of the guide in the probing class token, at this moment.
        blocks: The blocks from the stage's on, as many as it looks ahead.
        prefix: Prefix tokens P.
        class_query: Whether the class token asks; see `elip_plugin.core.score.score`.
    """

    stage: PlannedStage
    config: ElipConfig
    guide: Tensor | None
    text_weight: float
    blocks: Sequence[Callable[..., Tensor]]
    prefix: int
    class_query: bool
