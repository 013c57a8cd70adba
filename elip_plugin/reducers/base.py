"""What a reducer knows when a stage comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from elip_plugin.config import ElipConfig
from elip_plugin.core.prune import Selection, reduce
from elip_plugin.core.trace import Trace
from elip_plugin.planning import PlannedStage


@dataclass(frozen=True)
class Moment:
    """A stage, and what is there to decide by.

    Attributes:
        stage: The planned stage.
        config: What to prune.
        guide: Text guide [B, D], or None.
        blocks: The blocks from the stage's on, as many as it looks ahead.
        prefix: Prefix tokens P.
        class_query: Whether the class token asks; see `elip_plugin.core.score.score`.
        text_weight: Share of the guide in the probing class token, at this moment.
        trace: What records the stage, if anything does.
    """

    stage: PlannedStage
    config: ElipConfig
    guide: Tensor | None
    blocks: Sequence[Callable[..., Tensor]]
    prefix: int
    class_query: bool
    text_weight: float = 0.0
    trace: Trace | None = None

    def reduce(self, x: Tensor, selection: Selection, *, merge: bool) -> Tensor:
        """Apply a selection, and record it.

        Args:
            x: Tokens [B, T, D].
            selection: Which to keep and how to weigh the rest.
            merge: Whether to append the weighted sum of the dropped tokens.

        Returns:
            Tokens [B, tokens_out, D].
        """
        if self.trace is not None:
            self.trace.record(self.stage.block, selection, x.shape[1] - self.prefix, merge)
        return reduce(x, selection, prefix=self.prefix, merge=merge)
