"""ELIP (arXiv 2309.16738): look ahead, guided by the text; keep the best, merge the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from elip_plugin.core.score import score
from elip_plugin.core.select import Selection, select
from elip_plugin.core.stage import PlannedStage
from elip_plugin.reducers.base import Reducer, StageContext


def _three_stages(*lookaheads: int) -> dict[str, Any]:
    cuts = zip((2, 4, 10), lookaheads, (0.90, 0.65, 0.40), strict=True)
    stages = [{"block": b, "lookahead": n, "keep": keep} for b, n, keep in cuts]
    return {"stages": stages, "reference_depth": 12}


@dataclass(frozen=True)
class Elip(Reducer):
    """Keep by the lookahead attention of the class token blended with the text guide."""

    name = "elip"
    reads_text = True
    looks_ahead = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": _three_stages(2, 6, 2),
        "fast": _three_stages(1, 1, 1),
    }

    def config_defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the paper's text weight; see `Reducer.config_defaults`."""
        return {**super().config_defaults(given), "text_weight": 0.2}

    def decide(self, x: Tensor, stage: PlannedStage, context: StageContext) -> Selection:
        """Decide by the scores; see `Reducer.decide`."""
        blocks = context.blocks[stage.block : stage.block + stage.lookahead]
        scores = score(x, blocks, context.query, random_blocks=context.random_blocks)
        return select(scores, stage.keep, None, context.query.valid, stage.keep_each)
