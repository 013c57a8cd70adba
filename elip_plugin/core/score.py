"""Probe, look ahead, score: which tokens matter to the class token (paper, section 3).

Shapes: B batch, P prefix tokens, T tokens (prefix included), H heads, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

LOOK = "look"
"""Block mode: run the block without dropout or stochastic depth; [B, T, D] -> [B, T, D]."""

SCORE = "score"
"""Block mode: give only the class token's attention row; [B, T, D] -> [B, T]."""


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
    mixed = torch.lerp(x[:, :1], guide.detach().to(x.dtype).unsqueeze(1), text_weight)
    return torch.cat([mixed, x[:, 1:]], dim=1)


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


def score(
    x: Tensor,
    guide: Tensor | None,
    blocks: Sequence[Callable[..., Tensor]],
    *,
    text_weight: float,
    prefix: int,
) -> Tensor:
    """Score the non-prefix tokens by looking ahead through `blocks`.

    Args:
        x: Tokens [B, T, D].
        guide: Text guide [B, D], or None.
        blocks: The blocks looked through, in order; each is called as
            `block(tokens, elip=mode)`, the last with `SCORE`, the others with `LOOK`.
        text_weight: Share t of the guide in the probing class token.
        prefix: Prefix tokens P, which get no score.

    Returns:
        Scores [B, T - P], float32 or wider, without gradient.
    """
    with torch.no_grad(), _uncached_autocast(x.device.type):
        y = probe(x, guide, text_weight)
        for block in blocks[:-1]:
            y = block(y, elip=LOOK)
        return blocks[-1](y, elip=SCORE)[:, prefix:]


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
