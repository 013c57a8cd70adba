"""EViT (Liang et al., ICLR 2022): keep by class attention, fuse the rest, no text.

The attention is the one that the next block would compute. The fused token is the sum of the
dropped ones, each times its attention; unlike ELIP's merged token, the weights are not normalised.
"""

from __future__ import annotations

from torch import Tensor

from elip_plugin.core.prune import select
from elip_plugin.core.score import score
from elip_plugin.reducers.base import Moment


def reduce_stage(x: Tensor, moment: Moment) -> Tensor:
    """Run one stage.

    Args:
        x: Tokens [B, T, D].
        moment: The stage.

    Returns:
        [prefix, kept, fused] tokens [B, tokens_out, D].
    """
    scores = score(
        x,
        None,
        moment.blocks[:1],
        text_weight=0.0,
        prefix=moment.prefix,
        class_query=moment.class_query,
    )
    selection = select(scores, moment.stage.keep)
    selection = selection._replace(weights=scores.gather(1, selection.dropped))
    return moment.reduce(x, selection, merge=moment.config.merge)
