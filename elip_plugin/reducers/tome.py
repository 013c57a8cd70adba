"""ToMe (Bolya et al., ICLR 2023): merge similar tokens inside every block, no text.

Tokens are split into two alternating sets; each token of the first finds the most similar one of
the second by the cosine of their keys, and the r most similar pairs are averaged, weighted by how
many patches each token stands for. Attention counts a token as often as it stands for a patch
(log size is added to its logits). Where blocks read positions, a pair has that of its token of the
second set, and keys are compared as attention compares them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from elip_plugin.core.blocks import BlockParts
from elip_plugin.core.context import StageContext
from elip_plugin.core.merge import after_prefix, take_rows
from elip_plugin.core.precision import exact, wide
from elip_plugin.core.stage import PlannedStage
from elip_plugin.errors import PlanError
from elip_plugin.reducers.base import Reducer


class Pairs(NamedTuple):
    """Which tokens are merged, as indices in the two alternating sets of those after the prefix."""

    gone: Tensor  # of the first set, those that are merged [B, r]
    stay: Tensor  # of the first set, those that are not [B, . - r], increasing
    into: Tensor  # the token of the second set that each merged one goes into [B, r]
    second: int  # tokens of the second set, S

    def left(self) -> Tensor:
        """Return which tokens are left, as indices [B, T - P - r] of those after the prefix."""
        second = torch.arange(self.second, device=self.stay.device).expand(self.stay.shape[0], -1)
        return torch.cat([2 * self.stay, 2 * second + 1], dim=1)

    def groups(self) -> Tensor:
        """Return the token after the merging that each one of those before it is in [B, T - P]."""
        stayed = self.stay.shape[1]
        numbers = torch.arange(stayed, device=self.stay.device).expand_as(self.stay)
        first = self.stay.new_empty(self.stay.shape[0], stayed + self.gone.shape[1])
        first.scatter_(1, self.stay, numbers).scatter_(1, self.gone, stayed + self.into)
        groups = self.stay.new_empty(self.stay.shape[0], first.shape[1] + self.second)
        groups[:, ::2] = first
        groups[:, 1::2] = stayed + torch.arange(self.second, device=self.stay.device)
        return groups


def keeping(keep: float) -> Mapping[str, Any]:
    """Return a plan that leaves a share of the token-layers of a tower of any depth."""
    stages = [{"block": 0, "lookahead": 1, "keep": keep}]
    return {"stages": stages, "reference_depth": 12}


@dataclass(frozen=True)
class ToMe(Reducer):
    """Merge similar tokens inside every block, as many token-layers as the stages remove."""

    name = "tome"
    returns = False
    uses_attention = False
    inside_blocks = True
    weighs: ClassVar[bool] = False
    """Whether `match` reads how much the class token attends to each token."""
    pairs: ClassVar[type[Pairs]] = Pairs
    plan: ClassVar[Mapping[str, Any]] = {"preset": "half"}
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # In every block as many of the patches as there are blocks can spare.
        "half": keeping(0.5),
        # As near to unpruned training at equal steps as could be shown (research/photos.md).
        "level": {**keeping(0.48), "final_unpruned": 0.15},
        # Of ViT-B/16 about a third of the operations run.
        "third": keeping(0.36),
    }

    def resolve_stages(
        self, stages: tuple[PlannedStage, ...], *, num_patches: int, depth: int, prefix: int
    ) -> tuple[PlannedStage, ...]:
        """Spread the removal over the blocks; see `Reducer.resolve_stages` and `entering`."""
        removed = sum((s.tokens_in - s.tokens_out) * (depth - s.block) for s in stages)
        left = self.entering(num_patches, depth, removed)
        lengths = [prefix + tokens for tokens in left]
        return tuple(
            PlannedStage(i, 1, after - prefix, before, after)
            for i, (before, after) in enumerate(pairwise(lengths), 1)
            if after < before
        )

    def entering(self, num_patches: int, depth: int, removed: int) -> list[int]:
        """Return how many patches enter each block [L].

        Evenly less, as ToMe has it, up to a twelfth of the patches in each of 12 blocks; where more
        is asked for, each block keeps the same share of its tokens.

        Args:
            num_patches: Patches N that enter block 0.
            depth: Number of blocks L.
            removed: Token-layers that shall be saved: tokens that leave times blocks that follow.

        Returns:
            Numbers, of which none is less than half of the one before.
        """
        if 2 * removed <= depth * (num_patches + 1):
            pairs = depth * (depth - 1) / 2
            rate = min(removed / pairs if pairs else 0.0, num_patches / depth)
            return [num_patches - min(round(rate * i), num_patches - 1) for i in range(depth)]
        return shrinking(num_patches, depth, depth - removed / num_patches)

    def blocks_run(self, stages: Iterable[PlannedStage], depth: int) -> set[int]:
        """Return all blocks; see `Reducer.blocks_run`."""
        return set(range(depth))

    blocks_in_mode = blocks_run

    def run_block(
        self, i: int, x: Tensor, stages: Mapping[int, PlannedStage], context: StageContext
    ) -> Tensor:
        """Run a block, merging inside; see `Reducer.run_block`."""
        stage, state, prefix = stages.get(i + 1), context.state, context.prefix
        remove = 0 if stage is None else stage.tokens_in - stage.tokens_out
        x, sizes, resultants, *merged = context.blocks[i](
            x, run=merge_inside, sizes=state.sizes, remove=remove, prefix=prefix, how=self,
            resultants=state.resultants, weigh=self.weighs and context.class_query,
        )  # fmt: skip
        context.state = context.state._replace(sizes=sizes, resultants=resultants)
        if stage is not None:
            gone, stay, into = merged
            pairs = self.pairs(gone, stay, into, (stage.tokens_in - prefix) // 2)
            if context.trace is not None:
                context.trace.record_groups(i + 1, pairs.groups(), x.shape[1] - prefix)
            if context.restore:
                context.follow(pairs.groups())
            if context.positions is not None:
                context.take(pairs.left())
        return x

    def match(self, keys: Tensor, x: Tensor, sizes: Tensor, remove: int, prefix: int) -> Pairs:
        """Choose what is merged; without gradient.

        Args:
            keys: Keys of the tokens [B, heads, T, D / heads]; where the reducer weighs, the class
                token's query before them, if there is a class token.
            x: Tokens [B, T, D] after the block's attention.
            sizes: How many patches each token stands for [B, T].
            remove: Tokens r that leave.
            prefix: Prefix tokens P.

        Returns:
            The pairs; here of tokens whose keys, averaged over heads, are most similar.
        """
        return match(wide(keys).mean(dim=1), remove, prefix)

    def merge(
        self, x: Tensor, sizes: Tensor, resultants: Tensor | None, pairs: Pairs, prefix: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Merge pairs of tokens [B, T, D] of sizes [B, T]; gradient flows through the tokens.

        Args:
            x: Tokens [B, T, D].
            sizes: How many patches each token stands for [B, T].
            resultants: See `TokenState`; None before the first merging.
            pairs: What `match` chose.
            prefix: Prefix tokens P.

        Returns:
            Tokens [B, T - r, D] in the order of `pairs.left()`, here averages, their sizes, and
            what attention shall multiply their values by the root of, if by anything.
        """
        return *merge_pairs(x, sizes, pairs, prefix), None


def shrinking(num_patches: int, depth: int, total: float) -> list[int]:
    """Return how many of N patches enter each block [L]: always the same share of those before.

    Their sum is near `total` * N. Pairs are merged, so that the share is a half or more.
    """
    least = sum(0.5**i for i in range(depth))
    if total < least - 0.5 / num_patches * depth:
        raise PlanError(
            f"pairs are merged, hence at most half of the tokens in a block: of {depth} blocks' "
            f"tokens it leaves {least / depth:.2f} or more, and the stages ask for "
            f"{total / depth:.2f}; keep more, or use the reducer pool"
        )
    low, high = 0.5, 1.0
    for _ in range(50):
        share = (low + high) / 2
        low, high = (low, share) if sum(share**i for i in range(depth)) > total else (share, high)
    left = [num_patches]
    for i in range(1, depth):
        left.append(max(round(num_patches * low**i), left[-1] // 2, 1))
    return left


def merge_inside(
    block: BlockParts,
    x: Tensor,
    sizes: Tensor | None,
    remove: int,
    prefix: int,
    how: ToMe,
    resultants: Tensor | None = None,
    weigh: bool = False,
    **positions: Any,
) -> tuple[Any, ...]:
    """Run a block: attention in proportion to sizes, merging, MLP (a mode of patched blocks).

    `sizes` [B, T] says how many patches each token stands for (None: one); `remove` tokens (r) are
    merged away, as `how` matches and merges; `weigh` gives it the class token's query.

    Returns tokens [B, T - r, D], their sizes and resultants [B, T - r]; with r > 0 also the tensors
    of `Pairs`.
    """
    bias = None if sizes is None else sizes.log()[:, None, None]
    if resultants is not None:
        positions["factors"] = resultants.sqrt()
    if weigh and remove:
        positions["with_query"] = True
    added, keys = block.elip_attend(x, bias, **positions)
    x = x + block.elip_stochastic_depth(added)
    merged: tuple[Tensor, ...] = ()
    if remove:
        sizes = torch.ones_like(wide(x[..., 0])) if sizes is None else sizes
        pairs = how.match(keys, x, sizes, remove, prefix)
        x, sizes, resultants = how.merge(x, sizes, resultants, pairs, prefix)
        merged = (pairs.gone, pairs.stay, pairs.into)
    x = x + block.elip_stochastic_depth(block.elip_feed_forward(x))
    return (x, sizes, resultants, *merged)


def match(keys: Tensor, remove: int, prefix: int = 1) -> Pairs:
    """Match the r most similar tokens by the mean of the heads' keys [B, T, D / H]; no gradient."""
    with torch.no_grad(), exact(keys):
        metric = F.normalize(wide(keys.detach())[:, prefix:], dim=-1)
        # The first set is the larger one where their number is odd.
        first, second = metric[:, ::2], metric[:, 1::2]
        best, partner = (first @ second.transpose(1, 2)).max(dim=2)
        # Stable, as in `select`: what an exported graph does with equal numbers is then the same.
        order = best.sort(dim=1, descending=True, stable=True).indices
        gone, stay = order[:, :remove], order[:, remove:].sort(dim=1).values
        return Pairs(gone, stay, partner.gather(1, gone), second.shape[1])


def merge_pairs(x: Tensor, sizes: Tensor, pairs: Pairs, prefix: int = 1) -> tuple[Tensor, Tensor]:
    """Average the tokens [B, T, D] of each pair by their sizes [B, T]; gradient flows through them.

    Returns tokens [B, T - r, D], [prefix, first set, second set], and their sizes [B, T - r].
    """
    counts = sizes.unsqueeze(-1)
    weighted = torch.cat([wide(x) * counts, counts], dim=-1)
    second = weighted[:, prefix + 1 :: 2]
    merged = take_rows(weighted, 2 * pairs.gone + prefix)
    second = second.scatter_add(1, rows(pairs.into, second), merged)
    stay = take_rows(weighted, after_prefix(2 * pairs.stay, prefix))
    out = torch.cat([stay, second], dim=1)
    return (out[..., :-1] / out[..., -1:]).to(x.dtype), out[..., -1].detach()


def rows(index: Tensor, like: Tensor) -> Tensor:
    """Repeat indices [B, K] over the width of tokens [B, T, D]."""
    return index.unsqueeze(-1).expand(-1, -1, like.shape[-1])
