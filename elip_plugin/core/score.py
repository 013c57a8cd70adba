"""Probe, look ahead, score: which tokens matter to the class token (paper, section 3).

Shapes: B batch, P prefix tokens, T tokens (prefix included), H heads, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LOOK = "look"
"""Block mode: run the block without dropout or stochastic depth; [B, T, D] -> [B, T, D]."""

SCORE = "score"
"""Block mode: give only one attention row; [B, T, D] -> [B, T].

The row is the class token's, or that of `query` [B, 1, D] where it is given."""


def blend(token: Tensor, guide: Tensor | None, text_weight: float) -> Tensor:
    """Mix the text guide into a token.

    Args:
        token: The token that asks, [B, 1, D].
        guide: Text guide [B, D], or None to leave the token as it is.
        text_weight: Share t of the guide, in t * guide + (1 - t) * token.

    Returns:
        The mixed token [B, 1, D].
    """
    if guide is None or text_weight == 0:
        return token
    return torch.lerp(token, guide.detach().to(token.dtype).unsqueeze(1), text_weight)


def asking(x: Tensor, prefix: int, class_query: bool) -> Tensor:
    """Find the token that asks which tokens matter.

    Args:
        x: Tokens [B, T, D].
        prefix: Prefix tokens P.
        class_query: Whether the class token asks; if not, the mean of the patches does.

    Returns:
        The token [B, 1, D].
    """
    return x[:, :1] if class_query else x[:, prefix:].mean(dim=1, keepdim=True)


def probe(x: Tensor, guide: Tensor | None, text_weight: float) -> Tensor:
    """Blend the text guide into the class token of a detached copy.

    Args:
        x: Tokens [B, T, D], class token first.
        guide: Text guide [B, D], or None to score by the image alone.
        text_weight: Share t of the guide, in t * guide + (1 - t) * class token.

    Returns:
        Probe tokens [B, T, D], without gradient.
    """
    x = x.detach()
    if guide is None or text_weight == 0:
        return x
    return torch.cat([blend(x[:, :1], guide, text_weight), x[:, 1:]], dim=1)


def class_attention(query: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Compute one attention row, averaged over heads.

    Args:
        query: The class token's query [B, H, D / H].
        keys: Keys of all tokens [B, H, T, D / H].
        scale: Factor on the logits, usually (D / H) ** -0.5.

    Returns:
        Attention [B, T], float32 or wider; rows sum to 1.
    """
    # Products of float32 tensors by hand: autocast would run a matmul in half precision.
    wide = torch.promote_types(query.dtype, torch.float32)
    logits = (query.to(wide).unsqueeze(2) * keys.to(wide)).sum(dim=-1) * scale
    return logits.softmax(dim=-1).mean(dim=1)


def attention_row(
    z: Tensor,
    query: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    num_heads: int,
    *,
    norms: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None = None,
    scale: float | None = None,
) -> Tensor:
    """Compute one attention row from a packed query-key-value projection.

    Args:
        z: Normalised tokens [B, T, D], which give the keys.
        query: The normalised token that asks, [B, 1, D].
        weight: Packed projection [3 A, D], queries first; A is the attention's width.
        bias: Its bias [3 A], or None.
        num_heads: Heads H.
        norms: What normalises each head's queries and keys, if anything does.
        scale: Factor on the logits; (A / H) ** -0.5 if None.

    Returns:
        Attention [B, T], float32 or wider.
    """
    width = weight.shape[0] // 3
    query_bias, key_bias = (None, None) if bias is None else (bias[:width], bias[width : 2 * width])
    queries = _heads(F.linear(query, weight[:width], query_bias), num_heads)
    keys = _heads(F.linear(z, weight[width : 2 * width], key_bias), num_heads)
    if norms is not None:
        queries, keys = norms[0](queries), norms[1](keys)
    factor = queries.shape[-1] ** -0.5 if scale is None else scale
    return class_attention(queries[:, :, 0], keys, factor)


def _heads(x: Tensor, num_heads: int) -> Tensor:
    batch, tokens, _ = x.shape
    return x.view(batch, tokens, num_heads, -1).transpose(1, 2)  # [B, H, T, A / H]


def score(
    x: Tensor,
    guide: Tensor | None,
    blocks: Sequence[Callable[..., Tensor]],
    *,
    text_weight: float,
    prefix: int,
    class_query: bool = True,
) -> Tensor:
    """Score the non-prefix tokens by looking ahead through `blocks`.

    Args:
        x: Tokens [B, T, D].
        guide: Text guide [B, D], or None.
        blocks: The blocks looked through, in order; each is called as
            `block(tokens, elip=LOOK)`, the last as `block(tokens, elip=SCORE)`.
        text_weight: Share t of the guide in the token that asks.
        prefix: Prefix tokens P, which get no score.
        class_query: Whether the class token asks, as in the paper. If not (towers without
            one, or whose pooling ignores it), the tokens pass unchanged and the last block
            is asked with `query=`, the mean of the patches blended with the guide: our
            extension.

    Returns:
        Scores [B, T - P], float32 or wider, without gradient.
    """
    with torch.no_grad(), _uncached_autocast(x.device.type):
        y = probe(x, guide, text_weight) if class_query else x.detach()
        for block in blocks[:-1]:
            y = block(y, elip=LOOK)
        if class_query:
            return blocks[-1](y, elip=SCORE)[:, prefix:]
        query = blend(asking(y, prefix, class_query), guide, text_weight)
        return blocks[-1](y, elip=SCORE, query=query)[:, prefix:]


def _uncached_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Keep autocast as it is, without its cache of weights.

    Before torch 2.10 a weight cast under `no_grad` stays in that cache without a gradient,
    and the main blocks, which come next, would train nothing (pytorch issue 112583).
    """
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    if not torch.is_autocast_enabled(device_type):
        return nullcontext()
    dtype = torch.get_autocast_dtype(device_type)
    return torch.autocast(device_type, dtype=dtype, cache_enabled=False)
