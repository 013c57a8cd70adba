"""Random dropping: FLIP (Li et al., CVPR 2023) drops once, before the first block.

Here it drops at the config's stages, to as many tokens as the other reducers leave; one stage at
block 0 is FLIP's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from elip_plugin.core.prune import Selection
from elip_plugin.reducers.base import Moment


def draw(batch: int, tokens: int, device: torch.device) -> Tensor:
    """Draw what decides; the lowest stay.

    Args:
        batch: Images, B.
        tokens: Tokens that are not prefix, T.
        device: Where to draw.

    Returns:
        Numbers [B, T].
    """
    return torch.rand(batch, tokens, device=device)


def reduce_stage(x: Tensor, moment: Moment) -> Tensor:
    """Run one stage.

    Args:
        x: Tokens [B, T, D].
        moment: The stage.

    Returns:
        [prefix, kept] tokens [B, tokens_out, D], in their order.
    """
    order = draw(x.shape[0], x.shape[1] - moment.prefix, x.device).argsort(dim=1)
    keep = moment.stage.tokens_out - moment.prefix
    kept = order[:, :keep].sort(dim=1).values
    dropped = order[:, keep:]
    selection = Selection(kept, dropped, torch.empty_like(dropped, dtype=torch.float32))
    return moment.reduce(x, selection, merge=False)
