"""Random dropping: FLIP (Li et al., CVPR 2023) drops once, before the first block.

Here tokens are dropped at the config's stages, to as many as the other reducers leave; one stage
at block 0 is FLIP's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from elip_plugin.core.context import StageContext
from elip_plugin.core.select import Selection, select
from elip_plugin.core.stage import PlannedStage
from elip_plugin.reducers.base import Reducer


def draw(batch: int, tokens: int, device: torch.device) -> Tensor:
    """Draw the numbers [B, T] that decide; the lowest stay."""
    return torch.rand(batch, tokens, device=device)


@dataclass(frozen=True)
class Random(Reducer):
    """Drop at random, merge nothing."""

    name = "random"
    uses_attention = False
    merges = False
    draws = True

    def decide(self, x: Tensor, stage: PlannedStage, context: StageContext) -> Selection:
        """Decide at random; see `Reducer.decide`."""
        numbers = draw(x.shape[0], x.shape[1] - context.prefix, x.device)
        return select(-numbers, stage.tokens_out - context.prefix)._replace(weights=None)
