"""What a transformer block can be asked for besides its own forward, as functions of the block.

A patched block is called as `block(x, elip=mode)`, so that wrappers around it (sharding,
compilation) run as for any other call; see `elip_plugin.patching.blocks`.

Shapes: B batch, T tokens, H heads, D width, A attention width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class BlockParts(Protocol):
    """The parts of a block that the modes are made of."""

    elip_scale: float | None
    """Factor on the attention's logits; (A / H) ** -0.5 if None."""

    def query_and_keys(self, query: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise and project a token [B, 1, D] and the tokens [B, T, D]: [B, H, ., A / H]."""

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise and project tokens [B, T, D]: three times [B, H, T, A / H]."""

    def attention_output(self, mixed: Tensor) -> Tensor:
        """Turn the attention's result [B, H, T, A / H] into what is added to the tokens."""

    def feed_forward(self, x: Tensor) -> Tensor:
        """Compute what the MLP adds to the tokens [B, T, D], without dropout."""

    def stochastic_depth(self, added: Tensor) -> Tensor:
        """Apply the block's stochastic depth, if it has any, to what is added [B, T, D]."""


def look_ahead(block: BlockParts, x: Tensor) -> Tensor:
    """Run a block without dropout or stochastic depth.

    Args:
        block: The block.
        x: Tokens [B, T, D].

    Returns:
        Tokens [B, T, D].
    """
    q, k, v = block.queries_keys_values(x)
    mixed = F.scaled_dot_product_attention(q, k, v, scale=block.elip_scale)
    x = x + block.attention_output(mixed)
    return x + block.feed_forward(x)


def attention_row(block: BlockParts, x: Tensor, query: Tensor | None = None) -> Tensor:
    """Compute one attention row of a block, averaged over its heads.

    Args:
        block: The block.
        x: Tokens [B, T, D].
        query: The token whose row it is, [B, 1, D]; None for the class token.

    Returns:
        Attention [B, T], float32 or wider; rows sum to 1.
    """
    # The products of float32 tensors by hand: autocast would run a matmul in half precision.
    query, keys = block.query_and_keys(x[:, :1] if query is None else query, x)
    wide = torch.promote_types(query.dtype, torch.float32)
    scale = block.elip_scale
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    logits = (query.to(wide) * keys.to(wide)).sum(dim=-1) * scale
    return logits.softmax(dim=-1).mean(dim=1)


class PackedAttention(NamedTuple):
    """An attention whose query, key and value projections are one matrix.

    Attributes:
        norm: Normalises the tokens before the projection.
        weight: The projection [3 A, D], queries first.
        bias: Its bias [3 A], or None.
        num_heads: Heads H.
        query_norm: Normalises each head's queries, if anything does.
        key_norm: Normalises each head's keys, if anything does.
    """

    norm: Callable[[Tensor], Tensor]
    weight: Tensor
    bias: Tensor | None
    num_heads: int
    query_norm: Callable[[Tensor], Tensor] | None = None
    key_norm: Callable[[Tensor], Tensor] | None = None
