"""Retrieval among held-out pairs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def retrieval(images: Tensor, texts: Tensor) -> dict[str, float]:
    """Compute how well each of N pairs finds its other half.

    Args:
        images: Image features [N, E], of any norm.
        texts: Text features [N, E]; row i belongs to image i.

    Returns:
        Mean reciprocal rank over both directions ("mrr"), and recall at 1 and 5 for image to
        text ("i2t_r1", ...) and text to image; all 0 to 1.
    """
    similarity = F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).t()
    scores = {}
    inverse = []
    for name, rows in (("i2t", similarity), ("t2i", similarity.t())):
        rank = ranks(rows)
        inverse.append((1 / rank).mean().item())
        for k in (1, 5):
            scores[f"{name}_r{k}"] = (rank <= k).double().mean().item()
    return {"mrr": sum(inverse) / 2, **scores}


def ranks(similarity: Tensor) -> Tensor:
    """Compute the rank of each row's own column; a tie counts against it.

    Args:
        similarity: [N, N]; column i is the right one for row i.

    Returns:
        Ranks from 1 [N], float64.
    """
    own = similarity.diagonal().unsqueeze(1)
    return (similarity >= own).sum(dim=1).double()


def contrastive_loss(images: Tensor, texts: Tensor, scale: float) -> float:
    """Compute the symmetric contrastive loss of all N pairs as one batch.

    Args:
        images: Image features [N, E], of any norm.
        texts: Text features [N, E].
        scale: Factor on the cosines.

    Returns:
        The loss, in nats.
    """
    logits = scale * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).t()
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.t(), own)).item() / 2
