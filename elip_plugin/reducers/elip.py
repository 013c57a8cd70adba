"""ELIP (arXiv 2309.16738): look ahead, guided by the text; keep the best, merge the others."""

from __future__ import annotations

from torch import Tensor

from elip_plugin.core.score import score
from elip_plugin.core.select import Selection, select
from elip_plugin.reducers.base import PlannedStage, Reducer, StageContext


class Elip(Reducer):
    """Keep by the lookahead attention of the class token blended with the text guide."""

    name = "elip"
    reads_text = True
    looks_ahead = True

    def decide(self, x: Tensor, stage: PlannedStage, context: StageContext) -> Selection:
        """Decide by the scores; see `Reducer.decide`."""
        blocks = context.blocks[stage.block : stage.block + stage.lookahead]
        scores = score(x, blocks, context.query, random_blocks=context.random_blocks)
        return select(scores, stage.keep, None, context.query.valid, stage.keep_each)
