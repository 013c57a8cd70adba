"""What a transformer block can be asked for besides its own forward, as functions of the block.

A patched block is called as `block(x, elip=mode)`, so that wrappers around it (sharding,
compilation) run as for any other call; see `elip_plugin.patching.blocks`. Where blocks read
positions at every call, a mode gets them as `**positions`; see `elip_plugin.core.positions`.

Shapes: B batch, T tokens, H heads, D width, A attention width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class BlockParts(Protocol):
    """The parts of a block that the modes are made of."""

    elip_scale: float | None
    """Factor on the attention's logits; (A / H) ** -0.5 if None."""

    def query_and_keys(self, query: Tensor, x: Tensor, **positions: Any) -> tuple[Tensor, Tensor]:
        """Normalize and project a token [B, 1, D] and the tokens [B, T, D]: [B, H, ., A / H].

        The token is one of the prefix, or has no position.
        """

    def queries_keys_values(self, x: Tensor, **positions: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Normalize and project tokens [B, T, D]: three times [B, H, T, A / H]."""

    def position_bias(self, **positions: Any) -> Tensor | None:
        """Compute what is added to the attention's logits, [B or 1, H, T, T]; None for nothing."""

    def key_bias(self, **positions: Any) -> Tensor | None:
        """Compute what is added for a query without a position, [B, 1, 1, T]; None for nothing."""

    def attention_output(self, mixed: Tensor) -> Tensor:
        """Turn the attention's result [B, H, T, A / H] into what is added to the tokens."""

    def feed_forward(self, x: Tensor) -> Tensor:
        """Compute what the MLP adds to the tokens [B, T, D], without dropout."""

    def stochastic_depth(self, added: Tensor) -> Tensor:
        """Apply the block's stochastic depth, if it has any, to what is added [B, T, D]."""


def look_ahead(block: BlockParts, x: Tensor, **positions: Any) -> Tensor:
    """Run a block on tokens [B, T, D] without dropout or stochastic depth."""
    q, k, v = block.queries_keys_values(x, **positions)
    bias = block.position_bias(**positions) if positions else None
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=block.elip_scale)
    x = x + block.attention_output(mixed)
    return x + block.feed_forward(x)


def attention_row(
    block: BlockParts, x: Tensor, query: Tensor | None = None, **positions: Any
) -> Tensor:
    """Compute one attention row of a block, averaged over its heads, as a mode.

    It is that of `query` [B, 1, D], which then has no position; None for the class token.

    Returns attention over the tokens [B, T], float32 or wider; rows sum to 1.
    """
    # The products of float32 tensors by hand: autocast would run a matmul in half precision.
    q, keys = block.query_and_keys(x[:, :1] if query is None else query, x, **positions)
    wide = torch.promote_types(q.dtype, torch.float32)
    scale = block.elip_scale
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    logits = (q.to(wide) * keys.to(wide)).sum(dim=-1) * scale
    if positions:
        bias = (block.position_bias if query is None else block.key_bias)(**positions)
        logits = logits if bias is None else logits + bias[:, :, 0]
    return logits.softmax(dim=-1).mean(dim=1)


def key_uniqueness(
    block: BlockParts,
    x: Tensor,
    query: Tensor | None = None,
    *,
    prefix: int,
    valid: Tensor | None = None,
    **positions: Any,
) -> Tensor:
    """Compute how different the key of each token is from those of the others, as a mode.

    Keys are the mean of the heads'. The prefix P takes no part, nor what is not `valid` [B, T - P].

    Returns 1 / (sum of the positive cosines between the keys less their mean) [B, T], float32 or
    wider. It is 1 for a token that resembles no other, 1 / n for each of n equal tokens, and 0 for
    the prefix and for padding.
    """
    keys = block.query_and_keys(x[:, :1], x, **positions)[1].mean(dim=1)[:, prefix:]
    keys = keys.to(torch.promote_types(keys.dtype, torch.float32))
    keys = F.normalize(keys - mean_token(keys, valid), dim=2)
    keys = keys if valid is None else keys * valid.unsqueeze(-1)
    with torch.autocast(keys.device.type, enabled=False):
        similar = (keys @ keys.transpose(1, 2)).clamp_min(0).sum(dim=2)
    unique = similar.clamp_min(1).reciprocal()
    return F.pad(unique if valid is None else unique * valid, (prefix, 0))


def mean_token(x: Tensor, valid: Tensor | None) -> Tensor:
    """Compute the mean [B, 1, D] of the tokens [B, T, D] that are `valid` [B, T]; None: of all."""
    if valid is None:
        return x.mean(dim=1, keepdim=True)
    real = valid.unsqueeze(-1)
    return (x * real).sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True)


class PackedAttention(NamedTuple):
    """An attention whose query, key and value projections are one matrix.

    Attributes:
        norm: Normalizes the tokens before the projection.
        weight: The projection [3 A, D], queries first.
        bias: Its bias [3 A], or None.
        num_heads: Heads H.
        query_norm: Normalizes each head's queries, if anything does.
        key_norm: Normalizes each head's keys, if anything does.
    """

    norm: Callable[[Tensor], Tensor]
    weight: Tensor
    bias: Tensor | None
    num_heads: int
    query_norm: Callable[[Tensor], Tensor] | None = None
    key_norm: Callable[[Tensor], Tensor] | None = None
