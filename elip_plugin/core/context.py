"""What a reducer may decide by in one forward, and what is known of the tokens at this moment.

Shapes: B batch, P prefix tokens, T tokens (prefix included), D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from elip_plugin.core.select import Selection
from elip_plugin.core.trace import Trace

PositionOptions = Callable[[Tensor], Mapping[str, Any]]
"""From the positions of the tokens after the prefix, indices [B, T - P] of those that entered the
first block, to the options that every block is called with (rotary or relative positions)."""


class TokenState(NamedTuple):
    """What is known of the tokens between two blocks.

    Attributes:
        sizes: How many patches each token stands for [B, T], float32 or wider; None where each
            stands for itself.
        resultants: Length of the mean of its patches' directions [B, T], of sizes' type: 1 where
            they were equal when they were merged; None where nobody reads that.
        origins: Positions of the tokens after the prefix, as indices [B, T - P] of those that
            entered; None before a token left, and where blocks read no positions.
        place: What blocks are called with for these positions.
        aside: The tokens that skip some blocks at this moment, if any do.
        holders: The token after the prefix that has each patch, [B, N]; None before a token left,
            and where nothing is given back.
    """

    sizes: Tensor | None = None
    resultants: Tensor | None = None
    origins: Tensor | None = None
    place: Mapping[str, Any] = {}  # never changed
    aside: SetAside | None = None
    holders: Tensor | None = None


class SetAside(NamedTuple):
    """The tokens that a stage dropped, which skip some blocks."""

    restore_at: int  # the block before which they come back
    tokens: Tensor  # all of those before the stage [B, T, D]
    selection: Selection  # what the stage kept of them
    state: TokenState  # before the stage


@dataclass
class StageContext:
    """What a reducer may decide by; made anew for each forward.

    Attributes:
        prefix: Prefix tokens P, which are never pruned.
        guide: Text guide [B, D], or None; [M, D] if `from_batch`.
        text_weight: Share t of the guide in the query token.
        class_query: Whether the class token is the query, as in the paper. If not (towers without
            one, or whose pooling ignores it), the tokens pass unchanged and the last block's query
            is the mean of the patches blended with the guide: our extension.
        from_batch: Whether the guide is that of M texts which are not paired with the images; see
            `elip_plugin.core.guide.guide_from_batch`.
        further: Computes more guides from the tokens; see `elip_plugin.core.guide.TextQueries`.
        blocks: All blocks of the tower: `block(x)` runs one as the tower does, on tokens [B, T, D],
            `block(x, run=mode, **options)` a mode of it.
        ahead_by_parts: Whether looking ahead must use the mode `look_ahead`, because a block by
            itself has dropout or stochastic depth.
        merge: Whether the dropped tokens are merged into one.
        restore: Whether after the last block each patch has the token that it was merged into.
        training: Whether the tower is training.
        trace: Records what each stage does, if anything shall.
        norm: The tower's last norm; None where it has none.
        patches: Pixels [B, C, rows, columns, patch height, patch width] of the patches that became
            the tokens after the prefix, row by row, without gradient; None unless the reducer
            reads pixels.
        positions: What blocks are called with for positions; None where they do not read that.
        cache: A context for what is decided; see `elip_plugin.core.precision.uncached`.
        decided: The selections of this forward by their block.
        state: What is known of the tokens.
    """

    prefix: int
    guide: Tensor | None = None
    text_weight: float = 0.0
    class_query: bool = True
    from_batch: bool = False
    further: Callable[[Tensor], Tensor] | None = None
    blocks: Sequence[Callable[..., Any]] = ()
    ahead_by_parts: bool = True
    merge: bool = True
    restore: bool = False
    training: bool = False
    trace: Trace | None = None
    norm: Callable[[Tensor], Tensor] | None = None
    patches: Tensor | None = None
    positions: PositionOptions | None = None
    cache: Any = field(default_factory=nullcontext)
    decided: dict[int, Selection] = field(default_factory=dict)
    state: TokenState = TokenState()  # noqa: RUF009  # never changed

    def follow(self, groups: Tensor) -> None:
        """Follow which token has each patch, where somebody asks afterwards.

        Args:
            groups: The token that each one before a stage is in after it [B, T - P], both counted
                from the first one after the prefix.
        """
        if self.restore:
            holders = self.state.holders
            holders = groups if holders is None else groups.gather(1, holders)
            self.state = self.state._replace(holders=holders)

    def take(self, index: Tensor) -> None:
        """Follow the positions of tokens that were taken [B, T'] from those after the prefix."""
        if self.positions is not None:
            origins = self.state.origins
            origins = index if origins is None else origins.gather(1, index)
            self.state = self.state._replace(origins=origins, place=self.positions(origins))
