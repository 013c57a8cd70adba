"""Score the tokens: blend the text guide into the class token, look ahead (paper, section 3).

Or compare them with the text by themselves: `text_similarity`, ours.

Shapes: B batch, P prefix tokens, T tokens (prefix included), D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from elip_plugin.core.blocks import attention_row, look_ahead, mean_token
from elip_plugin.core.guide import guide_from_batch


def query_token(x: Tensor, prefix: int, class_query: bool, valid: Tensor | None = None) -> Tensor:
    """Return the token [B, 1, D] whose attention says which of the tokens [B, T, D] matter.

    It is the class token, or the mean of the patches that are `valid` [B, T - P].
    """
    return x[:, :1] if class_query else mean_token(x[:, prefix:], valid)


def blend_class_token(token: Tensor, guide: Tensor | None, text_weight: float) -> Tensor:
    """Blend a text guide [B, D] into the query token [B, 1, D] (paper, section 3.2).

    The blended token is t * guide + (1 - t) * token, of the text weight t.
    """
    if guide is None or text_weight == 0:
        return token
    return torch.lerp(token, guide.detach().to(token.dtype).unsqueeze(1), text_weight)


class Query(NamedTuple):
    """Whose attention scores the tokens.

    Attributes:
        prefix: Prefix tokens P, which get no score.
        guide: Text guide [B, D], or None; [M, D] if `from_batch`.
        text_weight: Share t of the guide in the query token.
        class_query: Whether the class token is the query, as in the paper. If not (towers
            without one, or whose pooling ignores it), the tokens pass unchanged and the last
            block's query is the mean of the patches blended with the guide: our extension.
        from_batch: Whether the guide is that of M texts which are not paired with the images;
            see `guide_from_batch`.
        valid: Which tokens after the prefix are real [B, T - P]; None where all are.
        further: Computes more guides from the tokens; see `elip_plugin.core.guide.TextQueries`.
    """

    prefix: int
    guide: Tensor | None = None
    text_weight: float = 0.0
    class_query: bool = True
    from_batch: bool = False
    valid: Tensor | None = None
    further: Callable[[Tensor], Tensor] | None = None


def score(
    x: Tensor,
    blocks: Sequence[Callable[..., Tensor]],
    query: Query,
    *,
    random_blocks: bool = True,
    row: Callable[..., Tensor] = attention_row,
) -> Tensor:
    """Score the non-prefix tokens by looking ahead through `blocks`.

    Args:
        x: Tokens [B, T, D].
        blocks: The blocks looked through, in order; of the last one only an attention row is
            computed.
        query: Whose attention it is.
        random_blocks: Whether blocks may have dropout or stochastic depth, so that looking ahead
            needs the mode `look_ahead`; if not, they are called by themselves.
        row: The mode of the last block that gives a number for each token.

    Returns:
        Scores [B, T - P], float32 or wider, without gradient.
    """
    prefix, guide, weight, class_query, from_batch, valid, _ = query
    device = x.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    with torch.no_grad(), _uncached_autocast(device) if autocast else nullcontext():
        y, token = x.detach(), None
        if guide is not None and from_batch:
            guide = guide_from_batch(query_token(y, prefix, class_query, valid), guide)
        if class_query and guide is not None:
            towards = guide.detach().to(y.dtype).unsqueeze(1)  # as `blend_class_token` does
            y = torch.cat([torch.lerp(y[:, :1], towards, weight), y[:, 1:]], dim=1)
        for block in blocks[:-1]:
            y = block(y, elip=look_ahead) if random_blocks else block(y)
        if not class_query:
            token = blend_class_token(query_token(y, prefix, False, valid), guide, weight)
        return blocks[-1](y, elip=row, query=token)[:, prefix:]


def _uncached_autocast(device_type: str) -> Any:
    """Return a context that keeps autocast as it is, without its cache of weights.

    Before torch 2.10 a weight cast under `no_grad` stays in that cache without a gradient,
    and the main blocks, which come next, would train nothing (pytorch issue 112583).
    """
    dtype = torch.get_autocast_dtype(device_type)
    return torch.autocast(device_type, dtype=dtype, cache_enabled=False)


def text_similarity(
    x: Tensor, norm: Callable[[Tensor], Tensor], query: Query, *, gradient: bool = False
) -> Tensor:
    """Score the non-prefix tokens by their similarity to the text (our extension).

    What reads a tower's output reads it after the last norm, by linear maps: the projection into
    the embedding that is compared with the text (CLIP), or the keys of a cross-attention. The
    guide is the text's side of that comparison, mapped back to the tower's width, so one product
    compares any token with it. MaskCLIP (arXiv 2112.01071) compares the last tokens with texts so.

    The query's guide is [B, D], or [B, G, D] with several guides per image; guides of zeros count
    for nothing. Its text weight is not used. Its `class_query` is used only if the texts are not
    paired with the images: it says which token weighs the texts. With `gradient`, norm and guide
    get one; the tokens [B, T, D] never do.

    Returns the softmax over the tokens of their products with the guide, or the mean of several
    [B, T - P], float32 or wider; 0 for padding.
    """
    prefix, guide, valid = query.prefix, query.guide, query.valid
    assert guide is not None  # a reducer that compares is not run without one
    device = x.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    gradient = gradient and torch.is_grad_enabled()
    cache = nullcontext() if gradient or not autocast else _uncached_autocast(device)
    with torch.set_grad_enabled(gradient), cache:
        y = norm(x.detach())
        if query.from_batch:
            guide = guide_from_batch(query_token(y, prefix, query.class_query, valid), guide)
        if query.further is not None:
            guide = torch.cat([guide, query.further(y)], dim=1)
        wide = torch.promote_types(y.dtype, torch.float32)
        guides = guide.to(wide).unsqueeze(1) if guide.ndim == 2 else guide.to(wide)
        with torch.autocast(device, enabled=False) if autocast else nullcontext():
            logits = y[:, prefix:].to(wide) @ guides.transpose(1, 2)
            if valid is not None:
                logits = logits.masked_fill(~valid.unsqueeze(-1), -torch.inf)
            real = (guides != 0).any(dim=2, keepdim=True).to(wide)  # [B, G, 1]
            return (logits.softmax(dim=1) @ real).squeeze(2) / real.sum(dim=1).clamp_min(1)
