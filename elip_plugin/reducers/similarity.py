"""Keep the tokens that are most similar to the text, as what reads the tower compares them.

No block was trained to read a text in the class token, so the attention of one with a text blended
in is hardly about the text. What a model does train is how the text reads the tower's output, and
tokens can be read in the same way before any block (research/text.md).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from elip_plugin.core.choice_loss import attach_selection_loss
from elip_plugin.core.context import StageContext
from elip_plugin.core.guide import Guide, TextGuide, TextQueries
from elip_plugin.core.score import text_similarity
from elip_plugin.core.select import Selection, select
from elip_plugin.core.stage import PlannedStage
from elip_plugin.errors import ConfigError
from elip_plugin.reducers.base import Reducer

FOR_QUESTIONS = {"preset": "fast", "reducer": {"name": "similarity", "choice_loss": 1.0}}
"""For models that are asked questions: the paper's cuts; research/text.md shows how much better
this chooses."""

FOR_INSTRUCTIONS = {"preset": "fast", "reducer": "similarity"}
"""For instructions on a tower that mostly is frozen. Without a loss on the choice, which needs a
backward pass through the tower."""


@dataclass(frozen=True)
class Similarity(Reducer):
    """Keep by similarity to the text guide, the text alone; merge the others.

    Attributes:
        choice_loss: Weight of a loss on the choice, with which the backward pass teaches the scores
            which of the kept tokens the task needs; on ALBEF and BLIP, whose text side learns by
            it. 0 for none. No value of a forward changes.
        cross_attentions: By how many cross-attentions of the text side, from the first, tokens
            are compared with the text; on ALBEF and BLIP. Each beyond the first costs a layer of
            it. More than there are means all.
    """

    name = "similarity"
    reads_text = True
    text_alone = True
    uses_attention = False
    needs = ("norm",)

    choice_loss: float = 0.0
    cross_attentions: int = 2

    def option_faults(self) -> list[str]:
        """Check the ranges; see `Reducer.option_faults`."""
        faults = []
        if self.choice_loss < 0:
            faults.append(f"choice_loss must be a number from 0 up, got {self.choice_loss!r}")
        if self.cross_attentions < 1:
            given = self.cross_attentions
            faults.append(f"cross_attentions must be an integer from 1 up, got {given!r}")
        return faults

    def check_model(self, name: str, *, text_is_sought: bool, teachable: bool) -> None:
        """Warn where the choice would tell which text it is; see `Reducer.check_model`."""
        if self.choice_loss > 0 and not teachable:
            raise ConfigError(
                f"choice_loss is for models whose text encoder reads the tower by cross-attention "
                f"(ALBEF and BLIP); {name} has none here: leave it out"
            )
        if text_is_sought:
            warnings.warn(
                f"the text that chooses tokens by {self.name!r} is one that {name} is trained to "
                "find among others: the choice tells the loss which it is, and a contrastive "
                "training then learns nothing else (research/text.md); use another reducer",
                stacklevel=4,
            )

    def selection_macs(self, stage: PlannedStage, width: int, mlp_ratio: float) -> float:
        """Count the products with the guide; see `Reducer.selection_macs`."""
        return float(stage.tokens_in * width)

    def read_guide(self, guide: Guide, *, training: bool) -> Tensor | TextQueries:
        """Read the guide as the text side compares; see `Reducer.read_guide`."""
        if isinstance(guide, TextGuide):
            return guide.queries(self.cross_attentions, training and self.choice_loss > 0)
        return super().read_guide(guide, training=training)

    def decide(self, x: Tensor, stage: PlannedStage, context: StageContext) -> Selection:
        """Decide by the similarities; see `Reducer.decide`."""
        assert context.norm is not None  # checked when the model was patched
        teaches = context.training and self.choice_loss > 0
        scores = text_similarity(x, context.norm, context, gradient=teaches)
        chosen = select(scores.detach(), stage.keep)
        if not scores.requires_grad:
            return chosen
        teach = partial(
            attach_selection_loss,
            scores=scores,
            kept=chosen.kept,
            first=context.prefix,
            weight=self.choice_loss,
        )
        return chosen._replace(teach=teach)
