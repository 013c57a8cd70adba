"""What a reducer is: the method that decides which tokens leave, with all that belongs to it.

Its options, what it asks of a configuration and a tower, how many tokens each block sees, what
choosing costs, and how a choice is applied: nothing outside this folder knows one reducer from
another.

Shapes: B batch, P prefix tokens, N patches, T tokens, K kept, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import Tensor

from elip_plugin.core.context import SetAside, StageContext
from elip_plugin.core.guide import Guide, TextGuide, TextQueries
from elip_plugin.core.merge import groups_of, keep_and_merge, positions_after, put_back
from elip_plugin.core.select import Selection, select
from elip_plugin.core.stage import PlannedStage, block_macs
from elip_plugin.errors import shown


@dataclass(frozen=True)
class Reducer:
    """Decides which tokens leave a tower. A subclass is one file; it holds its options only.

    A subclass with options is a frozen dataclass whose fields they are; a configuration gives them
    by `reducer: {name: ..., option: ...}`. The type of an option is that of its default.

    Attributes:
        name: What a configuration asks for by `reducer`.
        plan: What a configuration has that names this reducer and neither stages nor a preset: one
            of these two, as in a mapping for `ElipConfig.from_mapping`.
        reads_text: Whether the text guide takes part in the choice.
        text_alone: Whether the text decides alone, as what reads the tower's output compares it.
        looks_ahead: Whether a stage may have a lookahead above 1.
        merges: Whether what leaves goes into a token that stays, so that each patch has one.
        returns: Whether `Stage.until` can bring back what a stage drops.
        uses_attention: Whether each stage computes an attention row, which the plan then counts.
        inside_blocks: Whether tokens leave inside the block before a stage, ahead of its MLP.
        draws: Whether it draws by chance what it keeps, in evaluation too.
        needs: Parts that a tower must have besides its blocks: "norm", its last norm, and
            "patch_embed", the convolution that embeds its patches, for a `PixelReducer`.
        presets: Configurations of it that have a name: mappings as for
            `ElipConfig.from_mapping`, by their names.

    Example:
        >>> from elip_plugin.reducers import find_reducer
        >>> find_reducer("evit").uses_attention
        True
    """

    name: ClassVar[str]
    plan: ClassVar[Mapping[str, Any]] = {"preset": "fast"}
    reads_text: ClassVar[bool] = False
    text_alone: ClassVar[bool] = False
    looks_ahead: ClassVar[bool] = False
    merges: ClassVar[bool] = True
    returns: ClassVar[bool] = True
    uses_attention: ClassVar[bool] = True
    inside_blocks: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    # What it asks of a configuration and of a model.

    @property
    def text_weight(self) -> float:
        """The text weight of a configuration that names this reducer and none."""
        return 1.0 if self.text_alone else 0.2 if self.reads_text else 0.0

    def option_faults(self) -> list[str]:
        """List what is wrong with the options, besides their types: a sentence for each fault."""
        return []

    def config_faults(self, config: Any) -> list[str]:
        """List what a configuration asks of this reducer that it cannot do.

        Args:
            config: An `ElipConfig` whose fields have been checked by themselves.

        Returns:
            A sentence for each fault.
        """
        faults = []
        if config.text_weight and not self.reads_text:
            faults.append(
                f"reducer {self.name!r} reads no text: leave text_weight out, or set it to 0"
            )
        if self.text_alone and (config.text_weight != 1 or config.text_anneal):
            faults.append(
                f"reducer {self.name!r} chooses by the text alone: leave text_weight and "
                f"text_anneal out, got {config.text_weight!r} and {config.text_anneal!r}"
            )
        if self.text_alone and config.eval_mode == "image":
            faults.append(
                f"reducer {self.name!r} cannot choose without a text: eval_mode must be 'full', "
                "or 'text' where a text is an input at test time"
            )
        if not self.looks_ahead and any(stage.lookahead > 1 for stage in config.stages):
            faults.append(
                f"reducer {self.name!r} does not look ahead: use preset 'fast' or lookahead 1"
            )
        if config.restore and not (self.merges and config.merge):
            faults.append(
                f"reducer {self.name!r} drops tokens here, and merges none, so that patches have "
                "none to be given back: leave restore out"
            )
        if not self.returns and any(stage.until is not None for stage in config.stages):
            faults.append(
                f"reducer {self.name!r} makes tokens of several others, which cannot come back: "
                "leave until out"
            )
        return faults

    def check_model(self, name: str, *, text_is_sought: bool, teachable: bool) -> None:
        """Refuse a model that this reducer cannot prune, or warn of one; by default nothing.

        Args:
            name: The model's class.
            text_is_sought: Whether an image's text is what the model is trained to find.
            teachable: Whether the guide has a gradient in training.
        """

    # What it does to the number of tokens, and what that costs.

    def resolve_stages(
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

    def selection_macs(self, stage: PlannedStage, width: int, mlp_ratio: float) -> float:
        """Count what choosing costs at one stage; it has no backward pass.

        Args:
            stage: The stage.
            width: Tower width D.
            mlp_ratio: Hidden width of a block's MLP over D.

        Returns:
            Multiply-adds per image; by default those of the lookahead and of one attention row.
        """
        if not self.uses_attention:
            return 0.0
        row = stage.tokens_in * (width**2 + width)  # key projection, one row of logits
        return (stage.lookahead - 1) * block_macs(stage.tokens_in, width, mlp_ratio) + row

    # What it does in a forward.

    def blocks_run(self, stages: Iterable[PlannedStage], depth: int) -> set[int]:
        """Return the blocks that `run_block` runs; the tower runs the others by itself.

        Args:
            stages: The stages of a plan.
            depth: Number of blocks.

        Returns:
            Indices of blocks; by default those before which a stage stands or ends.
        """
        ends = {s.until for s in stages if s.until is not None}
        return {s.block for s in stages} | ends

    def blocks_in_mode(self, stages: Iterable[PlannedStage], depth: int) -> set[int]:
        """Return the blocks that are called with a mode, hence must be patched.

        Args:
            stages: The stages of a plan.
            depth: Number of blocks.

        Returns:
            Indices of blocks; by default those that give an attention row.
        """
        return {s.block + s.lookahead - 1 for s in stages} if self.uses_attention else set()

    def read_guide(self, guide: Guide, *, training: bool) -> Tensor | TextQueries:
        """Compute the guide of a forward.

        Args:
            guide: What the host or the caller guides by.
            training: Whether the tower is training.

        Returns:
            The guide, [B, D] by default.
        """
        if isinstance(guide, TextGuide):
            return guide.pooled()
        return guide() if callable(guide) else guide

    def run_block(
        self, i: int, x: Tensor, stages: Mapping[int, PlannedStage], context: StageContext
    ) -> Tensor:
        """Run a block of `blocks_run`, and decide and apply what stands before it.

        What a stage with `until` drops skips the blocks up to there, unmerged. Where the tower
        checkpoints its blocks, a block is run again in the backward pass, from the state that it
        had, with what was decided.

        Args:
            i: The block's index.
            x: Tokens [B, T, D] before it.
            stages: The stages of the plan by their block.
            context: What to decide by; it follows the tokens.

        Returns:
            Tokens [B, T', D] after the block.
        """
        prefix, aside = context.prefix, context.state.aside
        if aside is not None and i == aside.restore_at:
            x, context.state = put_back(x, aside.tokens, aside.selection, prefix), aside.state
        if i in stages:
            stage = stages[i]
            selection = context.decided.get(i)
            if selection is None:
                selection = self.decide(x, stage, context)
                if not context.merge or stage.until is not None:
                    selection = selection._replace(weights=None)
                if selection.teach is None:  # else its graph is that of this run
                    context.decided[i] = selection
            if stage.until is not None:
                aside = SetAside(stage.until, x, selection, context.state)
                context.state = context.state._replace(aside=aside)
            if context.trace is not None:
                context.trace.record(i, selection, x.shape[1] - prefix, stage.until)
            x = keep_and_merge(x, selection, prefix)
            if selection.teach is not None:
                x = selection.teach(x)
            if context.positions is not None:
                context.take(positions_after(selection))
            if context.restore and stage.until is None:
                context.follow(groups_of(selection))
        after: Tensor = context.blocks[i](x)
        return after

    def decide(self, x: Tensor, stage: PlannedStage, context: StageContext) -> Selection:
        """Decide which tokens stay, and how the others are merged; without gradient.

        Args:
            x: Tokens [B, tokens_in, D] that are about to enter the stage's block.
            stage: The stage.
            context: What to decide by.

        Returns:
            The selection, by default of the best `scores`. It keeps `stage.keep` tokens if it
            merges the others, and `stage.tokens_out` less the prefix if not.
        """
        return select(self.scores(x, stage, context), stage.keep)

    def scores(self, x: Tensor, stage: PlannedStage, context: StageContext) -> Tensor:
        """Score the tokens after the prefix; those with the best scores stay.

        Args:
            x: Tokens [B, tokens_in, D] that are about to enter the stage's block.
            stage: The stage.
            context: What to decide by.

        Returns:
            Scores [B, tokens_in - P], by which the others are merged.
        """
        raise NotImplementedError(f"reducer {type(self).__name__} has neither scores nor decide")


def option_faults(reducer: Reducer) -> list[str]:
    """List what is wrong with a reducer's options: their types, and what it says itself."""
    faults = []
    for option in fields(reducer):
        value, default = getattr(reducer, option.name), option.default
        if isinstance(default, bool):
            fits, kind = isinstance(value, bool), "true or false"
        elif isinstance(default, int):
            fits, kind = type(value) is int, "an integer"
        elif isinstance(default, float):
            fits = type(value) in (int, float) and math.isfinite(value)
            kind = "a finite number"
        else:
            fits, kind = isinstance(value, type(default)), f"a {type(default).__name__}"
        if not fits:
            faults.append(f"{option.name} must be {kind}, got {shown(value)}")
    return faults or reducer.option_faults()
