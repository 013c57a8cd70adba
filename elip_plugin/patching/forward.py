"""One call of a model or its tower: made once, handed down, and gone when the call ends."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from elip_plugin.core.guide import Guide, TextQueries
from elip_plugin.core.positions import PositionOptions, Positions
from elip_plugin.core.score import Query
from elip_plugin.core.trace import Trace
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.calls import thread
from elip_plugin.patching.padding import Padding, on_device, plan_each, trim
from elip_plugin.reducers import Reducer, StageContext

if TYPE_CHECKING:
    from elip_plugin.patching.pruner import Pruner


@dataclass(frozen=True)
class Settings:
    """What a caller has opened for the forwards of a tower in this thread."""

    enabled: bool = True  # whether anything is pruned
    guide: Guide | None = None  # in place of the one that the model makes
    eval_mode: str | None = None  # in place of the configuration's
    trace: Trace | None = None  # records what each stage does
    treat_as_training: bool = False  # a tower in evaluation mode, whose model trains

    def inside(self, outer: Settings) -> Settings:
        """Return these settings as opened inside of others."""
        opened = {name: value for name, value in vars(self).items() if value is not DEFAULTS[name]}
        return replace(outer, **opened)


DEFAULT = Settings()
DEFAULTS = vars(DEFAULT)


@dataclass
class Call:
    """One call of a model or of its tower; `Pruner.start` makes it, and decides."""

    pruner: Pruner
    reducer: Reducer
    settings: Settings  # what the caller has opened
    level: float  # how much of the plan is in force, 0 (all tokens) to 1
    text_weight: float  # share of the guide in the choice; 0: the image alone decides
    training: bool
    guide: Guide | None  # None where there is none yet, or none is needed
    needs_guide: bool  # text decides, and there is no guide yet
    tower: nn.Module | None = None  # may be a replica of the one described; None: not yet
    patches: Tensor | None = None  # their pixels, for reducers that read them
    # Tokens after each block, as it returns them, for a tower that takes its blocks from a list.
    outputs: list[Tensor] | None = None

    @contextmanager
    def guided(self, guide: Guide) -> Iterator[None]:
        """Guide the tower's forwards inside the context, as a model's forward does."""
        before = thread.innermost
        thread.innermost = (self.pruner, replace(self, guide=guide, needs_guide=False), before)
        try:
            yield
        finally:
            thread.innermost = before

    def run_blocks(
        self,
        x: Tensor,
        blocks: Iterable[Any],
        call: Callable[..., Any] | None = None,
        positions: PositionOptions | None = None,
        padding: Padding | None = None,
    ) -> Tensor:
        """Run all blocks of the tower with the reducer's stages.

        Args:
            x: Tokens [B, P + N, D].
            blocks: The tower's blocks.
            call: Runs a main block, where calling it is not enough: `call(block, x)`, or
                `call(block, x, mode, **options)`; see `elip_plugin.patching.blocks`.
            positions: What the blocks are called with for given positions, where they read them at
                every call.
            padding: What differs from image to image; for `run_padded_blocks`.

        Returns:
            Tokens [B, T', D].

        Raises:
            GuideError: If the guide is not [B, D], or not [M, D] for `guide_source: batch`.
            PlanError: If the plan cannot hold for N patches, or the reducer reads pixels, and they
                are not those of the tokens.
        """
        pruner = self.pruner
        shape, config = pruner.shape, pruner.config
        stages = {} if padding is not None else pruner.plan.by_block
        if padding is None and (self.level != 1 or x.shape[1] != pruner.num_tokens):
            stages = pruner.plan_for(x.shape[1] - shape.prefix, self.level).by_block
        guide, further = None, None
        if self.text_weight > 0:
            assert self.guide is not None  # else the call is not active
            read: Tensor | TextQueries
            if isinstance(self.guide, Tensor):
                read = self.guide
            else:
                read = self.reducer.read_guide(self.guide, training=self.training)
            if isinstance(read, TextQueries):
                guide, further = read.first, read.further and _once(read.further)
            else:
                guide = read
            if guide.shape != (x.shape[0], shape.width):  # most are
                pruner.check_guide(x, guide)
        from_batch = config.guide_source == "batch"
        query = Query(
            shape.prefix,
            guide,
            self.text_weight,
            shape.class_query,
            from_batch,
            further=further,
        )
        norm = pruner.norm_name
        context = StageContext(
            tuple(blocks),
            query,
            config.merge,
            pruner.random_blocks,
            self.settings.trace,
            self.training,
            self.patches,
            # A part that was called by itself has none.
            norm=getattr(self.tower, norm, None) if norm else None,
        )
        if padding is not None and positions is not None:
            stages, every = padding.stages, torch.arange(padding.valid.shape[1], device=x.device)
            every = every.expand(x.shape[0], -1)
            context = context.at(Positions(context.blocks, positions, every, padding.valid))
        elif positions is not None:
            context = context.at(Positions(context.blocks, positions))
        x, context = self.reducer.run(x, stages, context, call)
        if padding is not None:
            padding.left = context.query.valid
        return x

    def run_padded_blocks(
        self,
        x: Tensor,
        valid: Tensor,
        blocks: Iterable[Any],
        call: Callable[..., Any] | None,
        positions: PositionOptions,
    ) -> tuple[Tensor, Tensor]:
        """Run all blocks on images with different numbers of patches; see `run_blocks`.

        Each image has the plan of its own number: padding is never kept before a patch, and changes
        nothing. `valid` [B, N] says which tokens after the prefix are real; returned are the tokens
        [B, T', D], and which of those are [B, T' - P].

        Raises an UnsupportedModelError if a trace is on, or the reducer loses track of the padding.
        """
        pruner, prefix = self.pruner, self.pruner.shape.prefix
        if self.settings.trace is not None:
            raise UnsupportedModelError(
                "a batch of images with different numbers of patches cannot be traced: trace "
                "images [B, 3, height, width]"
            )
        x, valid, counts = trim(x, valid, prefix)
        plan_for = functools.partial(pruner.plan_for, level=self.level, skip_idle=True)
        stages = on_device(plan_each(counts, valid.shape[1], plan_for), x.device)
        padding = Padding(valid, stages)
        x = self.run_blocks(x, blocks, call, positions, padding)
        left = padding.left
        if left is None or left.shape[1] != x.shape[1] - prefix:
            raise UnsupportedModelError(
                f"reducer {self.reducer.name!r} does not say which tokens are padding, so it "
                "cannot prune images with different numbers of patches"
            )
        return x, left

    def refuse_mask(self, **masks: Any) -> None:
        """Refuse masks of the caller's, which would have to follow the tokens that are left."""
        for name, mask in masks.items():
            if mask is not None:
                raise UnsupportedModelError(
                    f"{name} is given to a pruned forward of {type(self.tower).__name__}, whose "
                    "tokens become fewer than it is for: leave it out, or run the forward inside "
                    "`find_handle(model).disabled()`"
                )


def _once(further: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Let the text side read the tokens of a forward's first stage only, which is what costs."""
    found: list[Tensor] = []

    def read(y: Tensor) -> Tensor:
        if not found:
            found.append(further(y))
        return found[0]

    return read
