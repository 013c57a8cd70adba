"""ELIP whose choice is drawn while it trains, so that a token with a low score is seen as well.

The K largest of log score + Gumbel noise are a sample without replacement in proportion to the
scores (Kool et al., ICML 2019). Gumbel noise is -log of an exponentially distributed number, hence
the quotient below.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from elip_plugin.core.context import StageContext
from elip_plugin.core.select import Selection, select
from elip_plugin.core.stage import PlannedStage
from elip_plugin.reducers.elip import Elip
from elip_plugin.reducers.random import draw


@dataclass(frozen=True)
class Gumbel(Elip):
    """Keep by ELIP's scores: in training a draw in proportion to them, in evaluation the best."""

    name = "gumbel"

    def decide(self, x: Tensor, stage: PlannedStage, context: StageContext) -> Selection:
        """Draw by the scores, which stay the merge weights; see `Reducer.decide`."""
        scores, drawn = self.scores(x, stage, context), None
        if context.training:
            drawn = scores / -draw(scores.shape[0], scores.shape[1], scores.device).log()
        return select(scores, stage.keep, drawn)
