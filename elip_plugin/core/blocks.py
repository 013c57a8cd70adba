"""What a transformer block can be asked for besides its own forward, as functions of the block.

A patched block is called as `block(x, run=mode)`, so that wrappers around it (sharding,
compilation) run as for any other call; see `elip_plugin.patching.blocks`. A mode is made of calls
of the block's own modules, so that what wraps these (adapters, quantized layers, hooks) acts in it
as in the block. Where blocks read positions at every call, a mode gets them as `**positions`; see
`elip_plugin.core.context.PositionOptions`.

Shapes: B batch, T tokens, H heads, D width, A attention width.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from elip_plugin.core.precision import exact, wide


class AttentionParts(Protocol):
    """The parts of an attention, inside of its own call."""

    elip_scale: float | None
    """Factor on the attention's logits; (A / H) ** -0.5 if None."""

    def elip_project(self, x: Tensor, **positions: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Project normalized tokens [B, T, D] to queries, keys, values: [B, H, T, A / H] each."""

    def elip_project_query_and_keys(
        self, query: Tensor, x: Tensor, **positions: Any
    ) -> tuple[Tensor, Tensor]:
        """Project a normalized token [B, 1, D] and normalized tokens: [B, H, 1 or T, A / H].

        The token is one of the prefix, or has no position.
        """

    def elip_project_output(self, joined: Tensor) -> Tensor:
        """Project the attention's result, heads joined [B, T, A]."""


class BlockParts(Protocol):
    """The parts of a block that the modes are made of."""

    elip_scale: float | None

    def elip_attend(
        self, x: Tensor, bias: Tensor | None = None, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Compute what the attention adds to tokens [B, T, D], and its keys; see `attend`."""

    def elip_query_and_keys(
        self, query: Tensor, x: Tensor, **positions: Any
    ) -> tuple[Tensor, Tensor]:
        """Normalize and project a token [B, 1, D] and the tokens; see `AttentionParts`."""

    def elip_feed_forward(self, x: Tensor) -> Tensor:
        """Compute what the MLP adds to the tokens [B, T, D], without dropout."""

    def elip_stochastic_depth(self, added: Tensor) -> Tensor:
        """Apply the block's stochastic depth, if it has any, to what is added [B, T, D]."""


def attend(
    attention: AttentionParts,
    x: Tensor,
    bias: Tensor | None = None,
    factors: Tensor | None = None,
    with_query: bool = False,
    **positions: Any,
) -> tuple[Tensor, Tensor]:
    """Compute an attention's output for normalized tokens [B, T, D], and keys [B, H, T, A / H].

    Runs inside of the attention's own call. `bias` is added to the logits, [B or 1, 1 or H, 1 or T,
    T], and values are multiplied by `factors` [B, T]. `with_query` puts the first token's query
    before the keys, scaled so that their products are logits, both float32 or wider.
    """
    q, k, v = attention.elip_project(x, **positions)
    bias = None if bias is None else bias.to(q.dtype)
    v = v if factors is None else v * factors[:, None, :, None].to(v.dtype)
    scale = q.shape[-1] ** -0.5 if attention.elip_scale is None else attention.elip_scale
    kind = (q.device.type, q.dtype)
    if kind == ("cpu", torch.bfloat16) and q.requires_grad and q.shape[2] < 512:
        # The fused kernel and its gradient take 1.5 to 3 times as long there.
        logits = (q * scale) @ k.transpose(2, 3)
        mixed = (logits if bias is None else logits + bias).softmax(dim=-1) @ v
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    if with_query:
        k = torch.cat([wide(q[:, :, :1]) * scale, wide(k)], dim=2)
    return attention.elip_project_output(mixed.transpose(1, 2).flatten(2)), k


def look_ahead(block: BlockParts, x: Tensor, **positions: Any) -> Tensor:
    """Run a block on tokens [B, T, D] without dropout or stochastic depth."""
    x = x + block.elip_attend(x, **positions)[0]
    return x + block.elip_feed_forward(x)


def attention_row(
    block: BlockParts, x: Tensor, query: Tensor | None = None, **positions: Any
) -> Tensor:
    """Compute one attention row of a block, averaged over its heads, as a mode.

    It is that of `query` [B, 1, D], which then has no position; None for the class token.

    Returns attention over the tokens [B, T], float32 or wider; rows sum to 1.
    """
    q, keys = block.elip_query_and_keys(x[:, :1] if query is None else query, x, **positions)
    scale = block.elip_scale
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if q.dtype != keys.dtype or q.dtype.itemsize < 4:
        q, keys = wide(q), wide(keys)
    return ((q * keys).sum(dim=-1) * scale).softmax(dim=-1).mean(dim=1)


def key_uniqueness(
    block: BlockParts, x: Tensor, query: Tensor | None = None, *, prefix: int, **positions: Any
) -> Tensor:
    """Compute how different the key of each token is from those of the others, as a mode.

    Keys are the mean of the heads'. The prefix P takes no part.

    Returns 1 / (sum of the positive cosines between the keys less their mean) [B, T], float32 or
    wider. It is 1 for a token that resembles no other, 1 / n for each of n equal tokens, and 0 for
    the prefix.
    """
    keys = wide(block.elip_query_and_keys(x[:, :1], x, **positions)[1]).mean(dim=1)[:, prefix:]
    keys = F.normalize(keys - keys.mean(dim=1, keepdim=True), dim=2)
    with exact(keys):
        similar = (keys @ keys.transpose(1, 2)).clamp_min(0).sum(dim=2)
    return F.pad(similar.clamp_min(1).reciprocal(), (prefix, 0))
