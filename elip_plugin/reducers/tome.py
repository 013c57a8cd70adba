"""ToMe (Bolya et al., ICLR 2023): merge similar tokens inside every block, no text.

Tokens are split into two alternating sets; each token of the first finds the most similar one of
the second by the cosine of their keys, and the r most similar pairs are averaged, weighted by how
many patches each token stands for. Attention counts a token as often as it stands for a patch
(log size is added to its logits).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from elip_plugin.config import ElipConfig
from elip_plugin.errors import ConfigError
from elip_plugin.planning import Plan

MERGE = "merge"
"""Block mode: run attention with sizes, merge, run the MLP;
[B, T, D], sizes [B, T], count r -> [B, T - r, D], sizes [B, T - r]."""


def refuse(config: ElipConfig, tower: str) -> None:
    """Refuse ToMe where blocks do not know how to merge.

    Args:
        config: What to prune.
        tower: The kind of tower, for the message.

    Raises:
        ConfigError: If the config asks for ToMe.
    """
    if config.reducer == "tome":
        raise ConfigError(
            f"reducer 'tome' is for OpenCLIP's native ViT, not for {tower}; 'evit' and 'random' "
            "are for all towers"
        )


def run_blocks(x: Tensor, blocks: Any, plan: Plan, checkpointing: bool) -> Tensor:
    """Run all blocks of a tower, merging inside each.

    Args:
        x: Tokens [B, P + N, D].
        blocks: The tower's blocks.
        plan: The plan, with the tokens of each block.
        checkpointing: Whether backward computes each block anew.

    Returns:
        Tokens [B, T', D].
    """
    sizes = x.new_ones(x.shape[:2])
    after = [*plan.tokens[1:], plan.tokens[-1]]
    for block, left in zip(blocks, after, strict=True):
        remove = x.shape[1] - left
        if checkpointing:
            x, sizes = checkpoint(
                block, x, elip=MERGE, sizes=sizes, remove=remove, use_reentrant=False
            )
        else:
            x, sizes = block(x, elip=MERGE, sizes=sizes, remove=remove)
    return x


def attend(q: Tensor, k: Tensor, v: Tensor, sizes: Tensor, scale: float | None = None) -> Tensor:
    """Attend in proportion to the sizes.

    Args:
        q: Queries [B, H, T, D / H].
        k: Keys, likewise.
        v: Values, likewise.
        sizes: How many patches each token stands for [B, T].
        scale: Factor on the logits; (D / H) ** -0.5 if None.

    Returns:
        Mixed values [B, H, T, D / H].
    """
    bias = sizes.log()[:, None, None].to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


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
        return lambda x: (x, sizes)
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
