"""ToMe (Bolya et al., ICLR 2023): merge similar tokens inside every block, no text.

Tokens are split into two alternating sets; each token of the first finds the most similar one of
the second by the cosine of their keys, and the r most similar pairs are averaged, weighted by how
many patches each token stands for. Attention counts a token as often as it stands for a patch
(log size is added to its logits).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from elip_plugin.core.blocks import BlockParts
from elip_plugin.reducers.base import BlockCall, PlannedStage, Reducer, StageContext


class ToMe(Reducer):
    """Merge similar tokens inside every block, as many token-layers as the stages remove."""

    name = "tome"
    traceable = False
    scores = False

    def tokens(
        self, stages: tuple[PlannedStage, ...], *, num_patches: int, depth: int, prefix: int
    ) -> tuple[PlannedStage, ...]:
        """Spread the removal evenly over the blocks, as ToMe does; see `Reducer.tokens`."""
        full = prefix + num_patches
        removed = sum((s.tokens_in - s.tokens_out) * (depth - s.block) for s in stages)
        pairs = depth * (depth - 1) / 2
        rate = min(removed / pairs if pairs else 0.0, num_patches / depth)
        lengths = [full - round(rate * i) for i in range(depth)]
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
    ) -> Tensor:
        """Run all blocks, merging inside; see `Reducer.run`."""
        sizes = x.new_ones(x.shape[:2])
        for i, block in enumerate(context.blocks):
            stage = stages.get(i + 1)
            remove = 0 if stage is None else stage.tokens_in - stage.tokens_out
            options = {"sizes": sizes, "remove": remove, "prefix": context.prefix}
            if call is None:
                x, sizes = block(x, elip=merge_inside, **options)
            else:
                x, sizes = call(block, x, merge_inside, **options)
        return x


def merge_inside(
    block: BlockParts, x: Tensor, sizes: Tensor, remove: int, prefix: int
) -> tuple[Tensor, Tensor]:
    """Run a block: attention in proportion to sizes, merging, MLP (a mode of patched blocks).

    Args:
        block: The block.
        x: Tokens [B, T, D].
        sizes: How many patches each token stands for [B, T].
        remove: How many tokens are merged away, r.
        prefix: Prefix tokens, which take no part.

    Returns:
        Tokens [B, T - r, D] and their sizes [B, T - r].
    """
    q, k, v = block.queries_keys_values(x)
    bias = sizes.log()[:, None, None].to(q.dtype)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=block.elip_scale)
    merge = merging(k.mean(dim=1), sizes, remove, prefix)
    x, sizes = merge(x + block.stochastic_depth(block.attention_output(mixed)))
    return x + block.stochastic_depth(block.feed_forward(x)), sizes


def merging(
    keys: Tensor, sizes: Tensor, remove: int, prefix: int = 1
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Match tokens by their keys.

    Args:
        keys: What to compare, the mean of the heads' keys [B, T, D / H].
        sizes: How many patches each token stands for [B, T].
        remove: How many tokens go, r; at most half of those that are not prefix.
        prefix: Prefix tokens, which take no part.

    Returns:
        A function from tokens [B, T, D] to merged tokens [B, T - r, D] and their sizes.
    """
    if remove == 0:
        return lambda x: (x, sizes.detach())
    with torch.no_grad():
        metric = F.normalize(keys.detach()[:, prefix:], dim=-1)
        # The first set is the larger one where their number is odd.
        similarity = metric[:, ::2] @ metric[:, 1::2].transpose(1, 2)
        best, partner = similarity.max(dim=2)
        order = best.argsort(dim=1, descending=True)
        gone, stay = order[:, :remove], order[:, remove:].sort(dim=1).values
        into = partner.gather(1, gone)

    def merge(x: Tensor) -> tuple[Tensor, Tensor]:
        weighted = torch.cat([x * sizes.unsqueeze(-1), sizes.unsqueeze(-1)], dim=-1)
        head, rest = weighted[:, :prefix], weighted[:, prefix:]
        first, second = rest[:, ::2], rest[:, 1::2]
        second = second.scatter_add(1, _wide(into, second), first.gather(1, _wide(gone, first)))
        out = torch.cat([head, first.gather(1, _wide(stay, first)), second], dim=1)
        return out[..., :-1] / out[..., -1:], out[..., -1].detach()

    return merge


def _wide(index: Tensor, like: Tensor) -> Tensor:
    return index.unsqueeze(-1).expand(-1, -1, like.shape[-1])
