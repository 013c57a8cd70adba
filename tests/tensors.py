"""Seeded tensors and exact comparisons, for tests of functions of tensors."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

LOW = torch.bfloat16


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rand_scores(*shape: int, seed: int = 0) -> Tensor:
    """Positive scores, a third of them equal."""
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.where(scores < 0.33, torch.full_like(scores, 0.33), scores) / shape[-1]


def autocast(on: bool) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=LOW) if on else nullcontext()


def assert_exact(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
