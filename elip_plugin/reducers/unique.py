"""Keep the tokens that are least like the others, by the keys of the next block; no text.

A density estimate, as in the literature on token merging (ToMe compares keys too): each token
counts how many tokens are similar to it. The merged token weighs each dropped token by the inverse
of that number, so that a group of similar tokens counts about as much as one token.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

from torch import Tensor

from elip_plugin.core.blocks import key_uniqueness
from elip_plugin.core.context import StageContext
from elip_plugin.core.score import score
from elip_plugin.core.stage import PlannedStage
from elip_plugin.reducers.base import Reducer

HEAD_WIDTH = 64
"""Width of a head, for counting what the comparison costs; it is so in nearly all ViTs."""


@dataclass(frozen=True)
class Unique(Reducer):
    """Keep the tokens whose keys are least like the others', merge the rest."""

    name = "unique"

    def selection_macs(self, stage: PlannedStage, width: int, mlp_ratio: float) -> float:
        """Count the keys and the comparison of all pairs; see `Reducer.selection_macs`."""
        tokens = stage.tokens_in
        return tokens * width**2 + tokens**2 * HEAD_WIDTH

    def scores(self, x: Tensor, stage: PlannedStage, context: StageContext) -> Tensor:
        """Compare the keys; see `Reducer.scores`."""
        row = functools.partial(key_uniqueness, prefix=context.prefix)
        return score(x, stage, replace(context, guide=None), row)
