"""Score the tokens: blend the text guide into the class token, look ahead (paper, section 3).

Or compare them with the text by themselves: `text_similarity`, ours.

Shapes: B batch, P prefix tokens, T tokens (prefix included), D width.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from elip_plugin.core.blocks import attention_row, look_ahead
from elip_plugin.core.context import StageContext
from elip_plugin.core.guide import guide_from_batch
from elip_plugin.core.precision import exact, wide
from elip_plugin.core.stage import PlannedStage


def query_token(x: Tensor, prefix: int, class_query: bool) -> Tensor:
    """Return the token [B, 1, D] whose attention says which of the tokens [B, T, D] matter.

    It is the class token, or the mean of the patches.
    """
    return x[:, :1] if class_query else x[:, prefix:].mean(dim=1, keepdim=True)


def blend_class_token(token: Tensor, guide: Tensor | None, text_weight: float) -> Tensor:
    """Blend a text guide [B, D] into the query token [B, 1, D] (paper, section 3.2).

    The blended token is t * guide + (1 - t) * token, of the text weight t.
    """
    if guide is None or text_weight == 0:
        return token
    return torch.lerp(token, guide.detach().to(token.dtype).unsqueeze(1), text_weight)


def score(
    x: Tensor,
    stage: PlannedStage,
    context: StageContext,
    row: Callable[..., Tensor] = attention_row,
) -> Tensor:
    """Score the non-prefix tokens by looking ahead through blocks.

    Args:
        x: Tokens [B, T, D].
        stage: From which block to look ahead, and through how many; of the last one only an
            attention row is computed.
        context: Whose attention it is, and how to look ahead.
        row: The mode of the last block that gives a number for each token.

    Returns:
        Scores [B, T - P], float32 or wider, without gradient.
    """
    prefix, class_query, guide = context.prefix, context.class_query, context.guide
    blocks = context.blocks[stage.block : stage.block + stage.lookahead]
    with torch.no_grad(), context.cache:
        y, token = x.detach(), None
        if guide is not None and context.from_batch:
            guide = guide_from_batch(query_token(y, prefix, class_query), guide)
        if class_query and guide is not None:
            towards = guide.detach().to(y.dtype).unsqueeze(1)  # as `blend_class_token` does
            y = torch.cat([torch.lerp(y[:, :1], towards, context.text_weight), y[:, 1:]], dim=1)
        for block in blocks[:-1]:
            y = block(y, run=look_ahead) if context.ahead_by_parts else block(y)
        if not class_query:
            token = blend_class_token(query_token(y, prefix, False), guide, context.text_weight)
        found: Tensor = blocks[-1](y, run=row, query=token)[:, prefix:]
        return found


def text_similarity(
    x: Tensor,
    norm: Callable[[Tensor], Tensor],
    context: StageContext,
    *,
    gradient: bool = False,
) -> Tensor:
    """Score the non-prefix tokens by their similarity to the text (our extension).

    What reads a tower's output reads it after the last norm, by linear maps: the projection into
    the embedding that is compared with the text (CLIP), or the keys of a cross-attention. The
    guide is the text's side of that comparison, mapped back to the tower's width, so one product
    compares any token with it. MaskCLIP (arXiv 2112.01071) compares the last tokens with texts so.

    The guide is [B, D], or [B, G, D] with several guides per image; guides of zeros count for
    nothing. The text weight is not used. `class_query` is used only if the texts are not paired
    with the images: it says which token weighs the texts. With `gradient`, norm and guide get one;
    the tokens [B, T, D] never do.

    Returns the softmax over the tokens of their products with the guide, or the mean of several
    [B, T - P], float32 or wider.
    """
    prefix, guide = context.prefix, context.guide
    assert guide is not None  # a reducer that compares is not run without one
    gradient = gradient and torch.is_grad_enabled()
    with torch.set_grad_enabled(gradient), nullcontext() if gradient else context.cache:
        y = norm(x.detach())
        if context.from_batch:
            guide = guide_from_batch(query_token(y, prefix, context.class_query), guide)
        if context.further is not None:
            guide = torch.cat([guide, context.further(y)], dim=1)
        y = wide(y)
        guides = guide.to(y.dtype).unsqueeze(1) if guide.ndim == 2 else guide.to(y.dtype)
        with exact(y):
            logits = y[:, prefix:] @ guides.transpose(1, 2)
            real = (guides != 0).any(dim=2, keepdim=True).to(y.dtype)  # [B, G, 1]
            return (logits.softmax(dim=1) @ real).squeeze(2) / real.sum(dim=1).clamp_min(1)
