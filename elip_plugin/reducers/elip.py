"""ELIP (arXiv 2309.16738): look ahead, guided by the text; keep the best, merge the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from elip_plugin.core.score import score
from elip_plugin.reducers.base import Reducer


def _three_stages(*lookaheads: int) -> dict[str, Any]:
    cuts = zip((2, 4, 10), lookaheads, (0.90, 0.65, 0.40), strict=True)
    stages = [{"block": b, "lookahead": n, "keep": keep} for b, n, keep in cuts]
    return {"stages": stages, "reference_depth": 12}


@dataclass(frozen=True)
class Elip(Reducer):
    """Keep by the lookahead attention of the class token blended with the text guide."""

    name = "elip"
    plan: ClassVar[Mapping[str, Any]] = {"preset": "paper"}
    reads_text = True
    looks_ahead = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": _three_stages(2, 6, 2),
        "fast": _three_stages(1, 1, 1),
    }

    scores = staticmethod(score)
