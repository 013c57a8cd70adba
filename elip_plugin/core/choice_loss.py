"""Teach the scores which tokens the task needs (our extension).

Choosing passes no gradient to the scores, so nothing makes a choice better. The backward pass
knows which tokens the task needs: those that the gradient of its loss reaches. That teaches the
scores, by a loss on the choice that is part of the backward pass and changes no value of a forward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _SelectionLoss(torch.autograd.Function):
    """Returns tokens as they are; in the backward pass log scores get a gradient as well."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, log_scores: Tensor, first: int, weight: float) -> Any:
        ctx.save_for_backward(tokens)
        ctx.first, ctx.count, ctx.weight = first, log_scores.shape[1], weight
        return tokens.view_as(tokens)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (gradient,), (tokens,) = gradients, ctx.saved_tensors
        kept = slice(ctx.first, ctx.first + ctx.count)
        wide = torch.promote_types(tokens.dtype, torch.float32)
        needed = -(gradient[:, kept].to(wide) * tokens[:, kept].to(wide)).sum(dim=-1)
        needed = needed.clamp_min(0)
        scale = needed.amax(dim=1, keepdim=True).clamp_min(torch.finfo(wide).tiny)
        target = (needed / scale).square()  # small gradients, squared, would be 0
        target = target / target.sum(dim=1, keepdim=True).clamp_min(torch.finfo(wide).tiny)
        return gradient, -ctx.weight * needed.sum(dim=1).mean() * target, None, None


def attach_selection_loss(
    tokens: Tensor, scores: Tensor, kept: Tensor, first: int, weight: float
) -> Tensor:
    """Let the backward pass teach the scores of the kept tokens.

    How much the task needs a token is, to first order, by how much its loss would rise without it:
    minus the product of token and gradient, where that is above 0. The loss on the choice is the
    cross-entropy between the scores, normalized over the kept tokens, and these needs, squared (so
    that more of the target lies on what the text asks about: research/text.md) and normalized.
    Times the sum of the needs, averaged over the batch, it follows the task's gradient,
    so that scaling the loss (mixed precision, several tasks) scales both.

    Scores are those of all N non-prefix tokens before the stage [B, N], above 0, of which `kept`
    [B, K] are in the tokens [B, T, D] after it, from place `first` on. Returns the tokens, of the
    same values.
    """
    log_scores = scores.gather(1, kept).clamp_min(torch.finfo(scores.dtype).tiny).log()
    log_scores = log_scores - log_scores.logsumexp(dim=1, keepdim=True)
    # torch 2.13 has no types here, 2.15 has.
    taught: Tensor = _SelectionLoss.apply(  # type: ignore[no-untyped-call,unused-ignore]
        tokens, log_scores, first, weight
    )
    return taught
