"""Keep the tokens that are most similar to the text, as what reads the tower compares them.

No block was trained to read a text in the class token, so the attention of one with a text blended
in is hardly about the text. What a model does train is how the text reads the tower's output, and
tokens can be read in the same way before any block (docs/text.md).
"""

from __future__ import annotations

from torch import Tensor

from elip_plugin.core.score import text_similarity
from elip_plugin.core.select import Selection, select
from elip_plugin.reducers.base import PlannedStage, Reducer, StageContext


class Similarity(Reducer):
    """Keep by similarity to the text guide, the text alone; merge the others."""

    name = "similarity"
    reads_text = True
    compares = True
    scores = False

    def cost(self, stage: PlannedStage, width: int, mlp_ratio: float) -> float:
        """Count the products with the guide; see `Reducer.cost`."""
        return float(stage.tokens_in * width)

    def decide(self, x: Tensor, stage: PlannedStage, context: StageContext) -> Selection:
        """Decide by the similarities; see `Reducer.decide`."""
        assert context.norm is not None  # checked when the model was patched
        teach = context.training and context.choice_loss > 0
        scores = text_similarity(x, context.norm, context.query, gradient=teach)
        chosen = select(scores.detach(), stage.keep, None, context.query.valid, stage.keep_each)
        return chosen._replace(taught=scores) if scores.requires_grad else chosen
