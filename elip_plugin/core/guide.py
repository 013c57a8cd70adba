"""From a text feature to a guide: a tower's linear maps, transposed, in reverse order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def carry_back(features: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """Carry text features back to a tower's width (paper, section 3.3).

    Args:
        features: Text features [B, E], of any norm.
        maps: Matrices [E, .], ..., [., D], the last map of the tower first.

    Returns:
        L2-normalised features times the maps in turn [B, D], detached.
    """
    with torch.no_grad():
        guide = F.normalize(features.detach(), dim=-1)
        for matrix in maps:
            guide = guide.to(matrix.dtype) @ matrix
        return guide
