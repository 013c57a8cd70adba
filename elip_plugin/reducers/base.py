"""What a reducer is: the object that decides which tokens leave, and what that costs.

Shapes: B batch, P prefix tokens, N patches, T tokens, K kept, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from elip_plugin.core.choice_loss import teach_choice
from elip_plugin.core.merge import keep_and_merge, put_back
from elip_plugin.core.positions import Positions, positions_after, valid_after
from elip_plugin.core.score import Query
from elip_plugin.core.select import Selection
from elip_plugin.core.trace import Trace

BlockCall = Callable[..., Any]
"""Runs one main block: (block, tokens [B, T, D], mode=None, **options) -> tokens [B, T, D], or what
the mode returns; checkpointed if the tower is."""


@dataclass(frozen=True)
class PlannedStage:
    """A stage with every number resolved.

    Attributes:
        block: The block before which tokens are pruned.
        lookahead: Blocks looked through, `block` included; the last gives one row only.
        keep: Tokens kept, K.
        tokens_in: Sequence length before the stage, prefix included.
        tokens_out: Sequence length after it, prefix and merged token included.
        until: The block before which the dropped tokens come back; None if they do not.
        keep_each: How many each image of a batch with padding keeps [B], of which `keep` is the
            largest; None without padding.
    """

    block: int
    lookahead: int
    keep: int
    tokens_in: int
    tokens_out: int
    until: int | None = None
    keep_each: Tensor | None = field(default=None, compare=False)


@dataclass(frozen=True)
class StageContext:
    """What a reducer may decide by, resolved once per forward.

    Attributes:
        blocks: All blocks of the tower, as a tuple; where they read positions, what calls them
            with those of the tokens as they are now.
        query: Whose attention scores the tokens, blended with the text guide if there is one.
        merge: Whether the dropped tokens are merged into one.
        random_blocks: Whether looking ahead may not call a block by itself; see `score`.
        trace: Records what each stage does, if anything shall.
        training: Whether the tower is training.
        patches: Pixels [B, C, rows, columns, patch height, patch width] of the patches that became
            the tokens after the prefix, row by row, without gradient; None unless the reducer
            reads pixels.
        positions: Where the tokens are, and which are padding; None where the blocks do not read
            that.
        norm: The tower's last norm; None unless the reducer compares.
        choice_loss: Weight of the loss on the choice; see `elip_plugin.core.choice_loss`.
    """

    blocks: tuple[Any, ...]
    query: Query
    merge: bool
    random_blocks: bool
    trace: Trace | None
    training: bool = False
    patches: Tensor | None = None
    positions: Positions | None = None
    norm: Callable[[Tensor], Tensor] | None = None
    choice_loss: float = 0.0

    @property
    def prefix(self) -> int:
        """Prefix tokens P, never pruned."""
        return self.query.prefix

    def at(self, positions: Positions) -> StageContext:
        """Return the context for tokens at other positions, which the blocks read.

        Args:
            positions: Where the tokens are, `self.positions.take(...)`.

        Returns:
            A context with blocks that are called with them.
        """
        query = self.query._replace(valid=positions.valid)
        return replace(self, positions=positions, blocks=positions.bound_blocks(), query=query)


class Reducer:
    """Decides which tokens leave a tower. A subclass is one file and has no state.

    Attributes:
        name: What a configuration asks for by `reducer`.
        reads_text: Whether the text guide takes part in the choice.
        compares: Whether it compares the tokens with the text guide, which then is not blended
            with anything: `StageContext.norm` is needed, the text weight is 1, and the guide is
            what the text side compares a tower's output with.
        looks_ahead: Whether a stage may have a lookahead above 1.
        traceable: Whether it records its stages in `StageContext.trace`.
        returns: Whether `Stage.until` can bring back what a stage drops.
        scores: Whether each stage computes an attention row, which the plan then counts.
        reads_pixels: Whether `StageContext.patches` is needed.
        at_input: Whether its one stage is at block 0.
        only_keep: The only keep ratio that it can do; None if it can do any.
        downscale: By how much the sides of the picture shrink before it is embedded; each embedding
            then stands for as many patches per side. Needs `reads_pixels`.
    """

    name: str
    reads_text: bool = False
    compares: bool = False
    looks_ahead: bool = False
    traceable: bool = True
    returns: bool = True
    scores: bool = True
    reads_pixels: bool = False
    at_input: bool = False
    only_keep: float | None = None
    downscale: int = 1

    def tokens(
        self, stages: tuple[PlannedStage, ...], *, num_patches: int, depth: int, prefix: int
    ) -> tuple[PlannedStage, ...]:
        """Return the stages as this reducer does them; by default those of the configuration.

        Args:
            stages: The configuration's stages, resolved.
            num_patches: Patches N that enter block 0.
            depth: Number of blocks.
            prefix: Prefix tokens P.

        Returns:
            The stages.
        """
        return stages

    def blocks_used(self, stages: Iterable[PlannedStage], depth: int) -> set[int]:
        """Return the blocks that are called with a mode of their own, hence must be patched.

        Args:
            stages: The stages of a plan.
            depth: Number of blocks.

        Returns:
            Indices of blocks; by default those that give an attention row.
        """
        return {s.block + s.lookahead - 1 for s in stages} if self.scores else set()

    def cost(self, stage: PlannedStage, width: int, mlp_ratio: float) -> float:
        """Count what choosing costs at one stage; it has no backward pass.

        Args:
            stage: The stage.
            width: Tower width D.
            mlp_ratio: Hidden width of a block's MLP over D.

        Returns:
            Multiply-adds per image; by default those of the lookahead and of one attention row.
        """
        if not self.scores:
            return 0.0
        row = stage.tokens_in * (width**2 + width)  # key projection, one row of logits
        return (stage.lookahead - 1) * block_cost(stage.tokens_in, width, mlp_ratio) + row

    def run(
        self,
        x: Tensor,
        stages: Mapping[int, PlannedStage],
        context: StageContext,
        call: BlockCall | None = None,
    ) -> tuple[Tensor, StageContext]:
        """Run all blocks of a tower; before those that have a stage, decide and apply.

        What a stage with `until` drops skips the blocks up to there, unmerged.

        Args:
            x: Tokens [B, P + N, D].
            stages: The stages by their block.
            context: What to decide by.
            call: Runs a main block, where calling it is not enough; stages stay outside of any
                checkpointed region.

        Returns:
            Tokens [B, T', D], and the context for them.
        """
        prefix = context.query.prefix
        # Until; tokens, what was kept of them, and their context.
        aside: tuple[int, Tensor, Selection, StageContext] | None = None
        for i in range(len(context.blocks)):
            if aside is not None and i == aside[0]:
                x, context, aside = put_back(x, aside[1], aside[2], prefix), aside[3], None
            if i in stages:
                until = stages[i].until
                selection = self.decide(x, stages[i], context)
                if not context.merge or until is not None:
                    selection = selection._replace(weights=None)
                if context.trace is not None:
                    context.trace.record(i, selection, x.shape[1] - prefix, until)
                if until is not None:
                    aside = until, x, selection, context
                x = keep_and_merge(x, selection, prefix)
                if selection.taught is not None:
                    weight = context.choice_loss
                    x = teach_choice(x, selection.taught, selection.kept, prefix, weight)
                if context.positions is not None:
                    after = positions_after(selection), valid_after(selection)
                    context = context.at(context.positions.take(*after))
            block = context.blocks[i]
            x = block(x) if call is None else call(block, x)
        return x, context

    def decide(self, x: Tensor, stage: PlannedStage, context: StageContext) -> Selection:
        """Decide which tokens stay, and how the others are merged; without gradient.

        Only `Selection.taught` may have one.

        Args:
            x: Tokens [B, tokens_in, D] that are about to enter the stage's block.
            stage: The stage.
            context: What to decide by.

        Returns:
            The selection, which keeps `stage.keep` tokens if it merges the others, and
            `stage.tokens_out` less the prefix if not.
        """
        raise NotImplementedError(f"reducer {type(self).__name__} does not decide")


def block_cost(tokens: int, width: int, mlp_ratio: float) -> float:
    """Count one block: its projections, its MLP, and the two products of attention.

    Args:
        tokens: Sequence length T.
        width: Tower width D.
        mlp_ratio: Hidden width of the MLP over D.

    Returns:
        Multiply-adds per image.
    """
    return tokens * width * (width * (4 + 2 * mlp_ratio) + 2 * tokens)
