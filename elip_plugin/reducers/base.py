"""What a reducer is: the method that decides which tokens leave, with all that belongs to it.

Its options, what it asks of a configuration and a tower, how many tokens each block sees, what
choosing costs, and how a choice is applied: nothing outside this folder knows one reducer from
another.

Shapes: B batch, P prefix tokens, N patches, T tokens, K kept, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from elip_plugin.core.guide import Guide, TextGuide, TextQueries
from elip_plugin.core.merge import keep_and_merge, put_back
from elip_plugin.core.positions import Positions, positions_after, valid_after
from elip_plugin.core.score import Query
from elip_plugin.core.select import Selection
from elip_plugin.core.stage import PlannedStage, block_macs
from elip_plugin.core.trace import Trace
from elip_plugin.errors import ConfigError, GuideError, UnsupportedModelError, shown

BlockCall = Callable[..., Any]
"""Runs one main block: (block, tokens [B, T, D], mode=None, **options) -> tokens [B, T, D], or what
the mode returns; checkpointed if the tower is."""

RENAMED = {"tokens": "resolve_stages", "cost": "selection_macs"}
"""Methods of version 0.2, which a subclass may still define by their old names."""


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
        norm: The tower's last norm; None where it has none.
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

    @property
    def prefix(self) -> int:
        """Prefix tokens P, never pruned."""
        return self.query.prefix

    def at(self, positions: Positions) -> StageContext:
        """Return the context for tokens at other positions, by which its blocks are then called."""
        query = self.query._replace(valid=positions.valid)
        return replace(self, positions=positions, blocks=positions.bound_blocks(), query=query)


class SetAside(NamedTuple):
    """The tokens that a stage dropped, which skip some blocks."""

    restore_at: int  # the block before which they come back
    tokens: Tensor  # all of those before the stage [B, T, D]
    selection: Selection  # what the stage kept of them
    context: StageContext


@dataclass(frozen=True)
class Reducer:
    """Decides which tokens leave a tower. A subclass is one file; it holds its options only.

    A subclass with options is a frozen dataclass whose fields they are; a configuration gives them
    by `reducer: {name: ..., option: ...}`. The type of an option is that of its default.

    Attributes:
        name: What a configuration asks for by `reducer`.
        reads_text: Whether the text guide takes part in the choice.
        looks_ahead: Whether a stage may have a lookahead above 1.
        traceable: Whether it records its stages in `StageContext.trace`.
        returns: Whether `Stage.until` can bring back what a stage drops.
        uses_attention: Whether each stage computes an attention row, which the plan then counts.
        needs: Parts that a tower must have besides its blocks: "norm", its last norm, and
            "patch_embed", the convolution that embeds its patches, which then is run by `embed`.
        guide_kind: What the text guide is: "pooled", a feature of each text [B, D], or "queries",
            what the text side compares a tower's output with.
        presets: Configurations of it that have a name: mappings as for
            `ElipConfig.from_mapping`, by their names.

    Example:
        >>> from elip_plugin.reducers import find_reducer
        >>> find_reducer("evit").uses_attention
        True
    """

    name: ClassVar[str]
    reads_text: ClassVar[bool] = False
    looks_ahead: ClassVar[bool] = False
    traceable: ClassVar[bool] = True
    returns: ClassVar[bool] = True
    uses_attention: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    guide_kind: ClassVar[str] = "pooled"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init_subclass__(cls) -> None:
        """Refuse methods of version 0.2, which nothing would call."""
        for old, new in RENAMED.items():
            if old in vars(cls):
                raise ConfigError(f"{cls.__name__}.{old} is now called {new}: rename it")

    # What it asks of a configuration.

    def config_defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of a configuration that names this reducer and leaves them out.

        Args:
            given: What it has.

        Returns:
            Values by `ElipConfig`'s fields; `stages` as mappings, or a `preset`.
        """
        defaults: dict[str, Any] = {} if self.reads_text else {"text_weight": 0.0}
        return defaults if self.looks_ahead else {**defaults, "preset": "fast"}

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
        if not self.looks_ahead and any(stage.lookahead > 1 for stage in config.stages):
            faults.append(
                f"reducer {self.name!r} does not look ahead: use preset 'fast' or lookahead 1"
            )
        if not self.returns and any(stage.until is not None for stage in config.stages):
            faults.append(
                f"reducer {self.name!r} makes tokens of several others, which cannot come back: "
                "leave until out"
            )
        return faults

    # What it asks of a model.

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

    def blocks_used(self, stages: Iterable[PlannedStage], depth: int) -> set[int]:
        """Return the blocks that are called with a mode of their own, hence must be patched.

        Args:
            stages: The stages of a plan.
            depth: Number of blocks.

        Returns:
            Indices of blocks; by default those that give an attention row.
        """
        return {s.block + s.lookahead - 1 for s in stages} if self.uses_attention else set()

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

    def describe_stages(self) -> str:
        """Describe in a few words which stages a configuration may have."""
        return "any" if self.returns else "any, no `until`"

    def describe_stage(self, stage: PlannedStage) -> str:
        """Describe a stage in a few words."""
        about = f"keep {stage.keep}"
        if self.uses_attention:
            about += f", look ahead {stage.lookahead}"
        if stage.until is not None:
            about += f", the others back at block {stage.until}"
        return about

    # What it does in a forward.

    def alone_eval_mode(self) -> str:
        """Return the `eval_mode` that prunes by images alone; "text" where none does."""
        return "image"

    def why_not_export(self) -> str:
        """Say why a tower that it prunes is no fixed graph of its images; "" if it is."""
        return ""

    def make_trace(self, prefix: int) -> Trace:
        """Return an empty trace for P prefix tokens; refuse if the reducer records nothing."""
        if not self.traceable:
            raise UnsupportedModelError(
                f"reducer {self.name!r} records nothing, so it cannot be traced; the "
                "built-in reducers can"
            )
        return Trace(prefix)

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

    def check_guide(self, guide: Tensor, texts: int | None, width: int) -> None:
        """Refuse a guide of another shape than [B, D].

        Args:
            guide: The guide.
            texts: How many it must be of; None for any number.
            width: Tower width D.

        Raises:
            GuideError: If it is not of that shape.
        """
        fits = guide.ndim == 2 and guide.shape[-1] == width
        if not fits or texts not in (None, guide.shape[0]) or (texts is None and not len(guide)):
            rows = "texts" if texts is None else texts
            raise GuideError(
                f"the text guide has shape {tuple(guide.shape)}, but this tower and batch need "
                f"({rows}, {width}): one row per {'text' if texts is None else 'image'}, one "
                "column per tower channel"
            )

    def embed(
        self, embedding: Callable[[Tensor], Tensor], images: Tensor, patch: tuple[int, int]
    ) -> tuple[Tensor, Tensor | None]:
        """Embed the patches of a pruned forward; for a reducer that swaps the patch embedding.

        Args:
            embedding: The host's convolution.
            images: Images [B, C, height, width].
            patch: Height and width of a patch in pixels.

        Returns:
            Embeddings [B, D, rows, columns], and the pixels for `StageContext.patches`.
        """
        return embedding(images), None

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
        aside: SetAside | None = None
        for i in range(len(context.blocks)):
            if aside is not None and i == aside.restore_at:
                x = put_back(x, aside.tokens, aside.selection, context.query.prefix)
                context, aside = aside.context, None
            if i in stages:
                stage = stages[i]
                selection = self.decide(x, stage, context)
                if not context.merge or stage.until is not None:
                    selection = selection._replace(weights=None)
                if stage.until is not None:
                    aside = SetAside(stage.until, x, selection, context)
                prefix = context.query.prefix
                if context.trace is not None:
                    context.trace.record(i, selection, x.shape[1] - prefix, stage.until)
                x = keep_and_merge(x, selection, prefix)
                if selection.trainable_scores is not None:
                    x = self.teach(x, selection, prefix)
                if context.positions is not None:
                    after = positions_after(selection), valid_after(selection)
                    context = context.at(context.positions.take(*after))
            block = context.blocks[i]
            x = block(x) if call is None else call(block, x)
        return x, context

    def decide(self, x: Tensor, stage: PlannedStage, context: StageContext) -> Selection:
        """Decide which tokens stay, and how the others are merged; without gradient.

        Only `Selection.trainable_scores` may have one.

        Args:
            x: Tokens [B, tokens_in, D] that are about to enter the stage's block.
            stage: The stage.
            context: What to decide by.

        Returns:
            The selection, which keeps `stage.keep` tokens if it merges the others, and
            `stage.tokens_out` less the prefix if not.
        """
        raise NotImplementedError(f"reducer {type(self).__name__} does not decide")

    def teach(self, x: Tensor, selection: Selection, prefix: int) -> Tensor:
        """Let the backward pass teach the scores of a selection that has `trainable_scores`.

        Args:
            x: Tokens [B, tokens_out, D] after the stage.
            selection: What was decided.
            prefix: Prefix tokens P.

        Returns:
            The tokens, of the same values.
        """
        raise NotImplementedError(f"reducer {type(self).__name__} does not teach its scores")


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
