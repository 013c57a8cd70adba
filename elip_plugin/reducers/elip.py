"""ELIP (arXiv 2309.16738): look ahead, guided by the text; keep the best, merge the others."""

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
        [prefix, kept, merged] tokens [B, tokens_out, D].
    """
    scores = score(
        x,
        moment.guide,
        moment.blocks,
        text_weight=moment.text_weight,
        prefix=moment.prefix,
        class_query=moment.class_query,
    )
    selection = select(scores, moment.stage.keep)
    return moment.reduce(x, selection, merge=moment.config.merge)
