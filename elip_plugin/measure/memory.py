"""The largest batch that fits a memory: tried out on a GPU, predicted elsewhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from elip_plugin.errors import ConfigError
from elip_plugin.hosts.base import HostModel
from elip_plugin.measure.counts import saved_bytes
from elip_plugin.measure.variants import PASSES, make_variants

UNITS = {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
STATES = 4
"""Tensors per weight in a training step: itself, its gradient, AdamW's two moments."""


@dataclass(frozen=True)
class Fit:
    """The largest batch of a variant.

    Attributes:
        variant: Its name.
        batch: Pairs per batch; 0 if not even one fits.
        fixed: Bytes whatever the batch.
        per_pair: Bytes more for each pair.
        measured: Whether the batch was tried out.
    """

    variant: str
    batch: int
    fixed: int
    per_pair: int
    measured: bool


def parse_bytes(text: str) -> int:
    """Read an amount of memory."""
    found = re.fullmatch(r"\s*([\d.]+)\s*([KMG]i?B)\s*", text, re.IGNORECASE)
    if found is None:
        raise ConfigError(f"{text!r} is no amount of memory: write such as 24GiB or 500MB")
    return int(float(found[1]) * UNITS[found[2].upper()])


def fit_batches(
    host_model: HostModel, budget: int, variants: Sequence[str], precision: str = "fp32"
) -> list[Fit]:
    """Find the largest batch of a training step that fits."""
    weights, step = list(host_model.model.parameters()), PASSES["step"]
    on_gpu = weights[0].is_cuda
    states = 0 if on_gpu else STATES * sum(p.numel() * p.element_size() for p in weights)

    def needed(variant: str, batch: int) -> int:
        made = make_variants(host_model, [variant], batch=batch, precision=precision)[variant]
        if on_gpu:
            return _peak(partial(step.run, made, torch.optim.AdamW(weights)))
        return saved_bytes(partial(step.forward, made), weights)

    fits = []
    for variant in variants:
        small = needed(variant, 2)
        per_pair = (needed(variant, 4) - small) // 2
        fixed = small - 2 * per_pair + states
        batch = max(0, (budget - fixed) // per_pair)
        if on_gpu:
            batch = _largest(lambda b, v=variant: needed(v, b) <= budget)  # type: ignore[misc]
        fits.append(Fit(variant, batch, fixed, per_pair, on_gpu))
    return fits


def _peak(step: Callable[[], object]) -> int:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        step()
        step()  # the optimizer's state is there from the second step on
    except torch.cuda.OutOfMemoryError:
        return 2**62
    return torch.cuda.max_memory_allocated()


def _largest(fits: Callable[[int], bool]) -> int:
    """Return the largest batch that fits, to within an eighth."""
    if not fits(1):
        return 0
    batch = 1
    while fits(2 * batch):
        batch *= 2
    step = batch // 2
    while step >= max(1, batch // 8):
        if fits(batch + step):
            batch += step
        step //= 2
    return batch
