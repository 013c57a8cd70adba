"""The one place for numbers of decisions: float32 or wider, whatever the forward computes in.

Scores, matches, sizes and sums weighted by sizes go through here. In half precision a sum over a
large group overflows, 256 + 1 is 256, and other pairs are the most similar ones.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """Return a tensor in float32, or as it is where its type is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def exact(x: Tensor) -> Any:
    """Return a context without autocast on the device of a tensor: products keep their types."""
    kind = x.device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if on else nullcontext()


def uncached(x: Tensor) -> Any:
    """Return a context that keeps autocast as it is, without its cache of weights.

    Before torch 2.10 a weight cast under `no_grad` stays in that cache without a gradient, and the
    main blocks, which come next, would train nothing (pytorch issue 112583).
    """
    kind = x.device.type
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return nullcontext()
    return torch.autocast(kind, dtype=torch.get_autocast_dtype(kind), cache_enabled=False)
