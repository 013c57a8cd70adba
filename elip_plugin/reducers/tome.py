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
from elip_plugin.core.stage import PlannedStage
from elip_plugin.errors import PlanError
from elip_plugin.reducers.base import BlockCall, Reducer, StageContext


def _keeping(keep: float) -> Mapping[str, Any]:
    """Return a plan that leaves a share of the token-layers of a tower of any depth."""
    stages = [{"block": 0, "lookahead": 1, "keep": keep}]
    return {"stages": stages, "reference_depth": 12}


@dataclass(frozen=True)
class ToMe(Reducer):
    """Merge similar tokens inside every block, as many token-layers as the stages remove."""

    name = "tome"
    returns = False
    uses_attention = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # In every block as many of the patches as there are blocks can spare.
        "half": _keeping(0.5),
        # As near to unpruned training at equal steps as could be shown (docs/photos.md).
        "level": {**_keeping(0.48), "final_unpruned": 0.15},
        # Of ViT-B/16 about a third of the operations run.
        "third": _keeping(0.36),
        # For weights that are there: it costs least without any training (docs/quality.md).
        "embed": {**_keeping(0.5), "eval_mode": "image"},
    }

    def resolve_stages(
        self, stages: tuple[PlannedStage, ...], *, num_patches: int, depth: int, prefix: int
    ) -> tuple[PlannedStage, ...]:
        """Spread the removal over the blocks; see `Reducer.resolve_stages`.

        Evenly, as ToMe does, up to a twelfth of the patches in each of 12 blocks; where stages ask
        for more, each block keeps the same share of its tokens.
        """
        removed = sum((s.tokens_in - s.tokens_out) * (depth - s.block) for s in stages)
        if 2 * removed <= depth * (num_patches + 1):
            pairs = depth * (depth - 1) / 2
            rate = min(removed / pairs if pairs else 0.0, num_patches / depth)
            left = [num_patches - min(round(rate * i), num_patches - 1) for i in range(depth)]
        else:
            left = shrinking(num_patches, depth, depth - removed / num_patches)
        lengths = [prefix + tokens for tokens in left]
        return tuple(
            PlannedStage(i, 1, after - prefix, before, after)
            for i, (before, after) in enumerate(pairwise(lengths), 1)
            if after < before
        )

    def blocks_used(self, stages: Iterable[PlannedStage], depth: int) -> set[int]:
        """Return all blocks; see `Reducer.blocks_used`."""
        return set(range(depth))

    def run(
        self,
        x: Tensor,
        stages: Mapping[int, PlannedStage],
        context: StageContext,
        call: BlockCall | None = None,
    ) -> tuple[Tensor, StageContext]:
        """Run all blocks, merging inside; see `Reducer.run`."""
        sizes = x.new_ones(x.shape[:2])
        if context.query.valid is not None:  # padding has size 0: nothing attends to it
            sizes[:, context.prefix :] = context.query.valid
        for i in range(len(context.blocks)):
            block, stage = context.blocks[i], stages.get(i + 1)
            remove = 0 if stage is None else stage.tokens_in - stage.tokens_out
            options: dict[str, Any] = {"sizes": sizes, "remove": remove, "prefix": context.prefix}
            if stage is not None and stage.keep_each is not None:
                options["keep_each"] = stage.keep_each
            if call is None:
                x, sizes, *merged = block(x, elip=merge_inside, **options)
            else:
                x, sizes, *merged = call(block, x, merge_inside, **options)
            if stage is None:
                continue
            if context.query.valid is not None:
                assert context.positions is not None
                real = sizes[:, context.prefix :] > 0
                context = context.at(context.positions.take(merged[0], real))
                continue
            gone, stay, into = merged
            pairs = Pairs(gone, stay, into, (stage.tokens_in - context.prefix) // 2)
            if context.trace is not None:
                context.trace.record_groups(i + 1, pairs.groups(), x.shape[1] - context.prefix)
            if context.positions is not None:
                context = context.at(context.positions.take(pairs.left()))
        return x, context


def shrinking(num_patches: int, depth: int, total: float) -> list[int]:
    """Return how many of N patches enter each block [L]: always the same share of those before.

    Their sum is near `total` * N. Pairs are merged, so that the share is a half or more.
    """
    least = sum(0.5**i for i in range(depth))
    if total < least - 0.5 / num_patches * depth:
        raise PlanError(
            f"ToMe merges pairs, hence at most half of the tokens in a block: of {depth} blocks' "
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
    sizes: Tensor,
    remove: int,
    prefix: int,
    keep_each: Tensor | None = None,
    **positions: Any,
) -> tuple[Tensor, ...]:
    """Run a block: attention in proportion to sizes, merging, MLP (a mode of patched blocks).

    `sizes` [B, T] says how many patches each token stands for; `remove` tokens (r) are merged away.
    In a batch with padding `keep_each` [B] says how many each image keeps.

    Returns tokens [B, T - r, D] and their sizes [B, T - r]; with r > 0 also the tensors of `Pairs`,
    or with padding which tokens are left, as indices [B, T - P - r] of those after the prefix.
    """
    q, k, v = block.queries_keys_values(x, **positions)
    bias = sizes.log()[:, None, None].to(q.dtype)
    shift = block.position_bias(**positions) if positions else None
    bias = bias if shift is None else bias + shift
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=block.elip_scale)
    x = x + block.stochastic_depth(block.attention_output(mixed))
    merged: tuple[Tensor, ...] = ()
    if keep_each is not None:
        x, sizes, left = merge_padded(x, sizes, k.mean(dim=1), remove, prefix, keep_each)
        merged = (left,)
    elif remove:
        pairs = match(k.mean(dim=1), remove, prefix)
        x, sizes = merge_pairs(x, sizes, pairs, prefix)
        merged = (pairs.gone, pairs.stay, pairs.into)
    x = x + block.stochastic_depth(block.feed_forward(x))
    return (x, sizes, *merged)


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


def match(keys: Tensor, remove: int, prefix: int = 1) -> Pairs:
    """Match the r most similar tokens by the mean of the heads' keys [B, T, D / H]; no gradient."""
    with torch.no_grad():
        metric = F.normalize(keys.detach()[:, prefix:], dim=-1)
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
    weighted = torch.cat([x * sizes.unsqueeze(-1), sizes.unsqueeze(-1)], dim=-1)
    head, rest = weighted[:, :prefix], weighted[:, prefix:]
    first, second = rest[:, ::2], rest[:, 1::2]
    merged = first.gather(1, _wide(pairs.gone, first))
    second = second.scatter_add(1, _wide(pairs.into, second), merged)
    out = torch.cat([head, first.gather(1, _wide(pairs.stay, first)), second], dim=1)
    return out[..., :-1] / out[..., -1:], out[..., -1].detach()


def merge_padded(
    x: Tensor, sizes: Tensor, keys: Tensor, remove: int, prefix: int, keep_each: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Match and average tokens of images that have different numbers of them; see `merge_inside`.

    Padding has size 0. Returns tokens [B, T - r, D], those of an image before its padding, their
    sizes [B, T - r], and which they are of those before, as indices [B, T - P - r] of those after
    the prefix.
    """
    with torch.no_grad():
        real = sizes[:, prefix:] > 0
        metric = F.normalize(keys.detach()[:, prefix:], dim=-1)
        similar = metric[:, ::2] @ metric[:, 1::2].transpose(1, 2)
        similar = similar.masked_fill(~real[:, None, 1::2], -torch.inf)
        best, into = similar.max(dim=2)
        best = best.masked_fill(~real[:, ::2], -torch.inf)
        order = best.sort(dim=1, descending=True, stable=True).indices
        rank = order.argsort(dim=1)
        going = (real.sum(dim=1) - keep_each).unsqueeze(1)
        goes = (rank < going).unsqueeze(-1)
        order = torch.arange(real.shape[1], device=x.device)
        order = torch.cat([order[::2], order[1::2]])
    weighted = torch.cat([x * sizes.unsqueeze(-1), sizes.unsqueeze(-1)], dim=-1)
    head, rest = weighted[:, :prefix], weighted[:, prefix:]
    first, second = rest[:, ::2], rest[:, 1::2]
    second = second.scatter_add(1, _wide(into, second), first * goes)
    together = torch.cat([first * ~goes, second], dim=1)
    padding = together[..., -1].detach() == 0
    # One set after the other, as without padding; where nothing goes, the order stays.
    place = torch.where(going > 0, torch.arange(order.shape[0], device=x.device), order)
    place = place + order.shape[0] * padding
    chosen = place.argsort(dim=1)[:, : real.shape[1] - remove]
    out = torch.cat([head, together.gather(1, _wide(chosen, together))], dim=1)
    return out[..., :-1] / out[..., -1:].clamp_min(1), out[..., -1].detach(), order[chosen]


def _wide(index: Tensor, like: Tensor) -> Tensor:
    return index.unsqueeze(-1).expand(-1, -1, like.shape[-1])
