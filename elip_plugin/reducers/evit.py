"""EViT (Liang et al., ICLR 2022): keep by class attention, fuse the rest, no text.

The attention is the one that the next block would compute. The fused token is the sum of the
dropped ones, each times its attention; unlike ELIP's merged token, the weights are not normalized.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from elip_plugin.core.context import StageContext
from elip_plugin.core.score import score
from elip_plugin.core.select import Selection, select
from elip_plugin.core.stage import PlannedStage
from elip_plugin.reducers.base import Reducer


@dataclass(frozen=True)
class EViT(Reducer):
    """Keep by the class token's attention, fuse the rest."""

    name = "evit"

    def decide(self, x: Tensor, stage: PlannedStage, context: StageContext) -> Selection:
        """Decide by the scores, which are the fused token's weights; see `Reducer.decide`."""
        return select(score(x, stage, context), stage.keep, normalise=False)
