"""Retrieval among names: several pictures have the same one."""

from __future__ import annotations

import torch
from torch import Tensor


def name_retrieval(similarity: Tensor, own: Tensor) -> dict[str, float]:
    """Compute how well pictures find their names, and names one of their pictures.

    A picture's own name is ranked among all names. A name's rank is that of the first of its
    pictures: one more than the pictures of other names before it. A tie counts against the model.

    Args:
        similarity: Of each picture with each name [N, M], finite.
        own: Which name each picture has [N], each of 0 to M - 1 at least once.

    Returns:
        Mean reciprocal rank over both directions ("mrr"), and for pictures to names and names to
        pictures alone ("i2t_mrr", "t2i_mrr"), with recall at 1 and 5 ("i2t_r1", ...); all 0 to 1.

    Raises:
        ValueError: If the shapes do not fit, a value is not finite, or a name has no picture.
    """
    if similarity.dim() != 2 or own.shape != similarity.shape[:1]:
        raise ValueError(
            f"similarity is {list(similarity.shape)} and own {list(own.shape)}, but must be "
            "[N, M] and [N]: a row per picture, a column per name."
        )
    names = similarity.shape[1]
    if sorted(set(own.tolist())) != list(range(names)):
        raise ValueError(
            f"own must hold each of 0 to {names - 1}: every column of similarity needs a picture; "
            "leave out names without one."
        )
    if not similarity.isfinite().all():
        raise ValueError("similarity has values that are not finite, which have no rank.")
    own = own.to(similarity.device)
    right = similarity.gather(1, own[:, None])
    by_picture = (similarity >= right).sum(dim=1).double()
    mine = own[:, None] == torch.arange(names, device=own.device)
    best = similarity.masked_fill(~mine, -torch.inf).amax(dim=0)
    by_name = 1 + ((similarity >= best) & ~mine).sum(dim=0).double()
    scores = {}
    for direction, rank in (("i2t", by_picture), ("t2i", by_name)):
        scores[f"{direction}_mrr"] = (1 / rank).mean().item()
        for k in (1, 5):
            scores[f"{direction}_r{k}"] = (rank <= k).double().mean().item()
    return {"mrr": (scores["i2t_mrr"] + scores["t2i_mrr"]) / 2, **scores}
