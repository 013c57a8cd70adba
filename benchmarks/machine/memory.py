"""The largest batch of a training step, found by trying it out on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.machine.counting import count_memory
from elip_plugin import HostModel
from elip_plugin.measure.variants import PASSES, make_variants


@dataclass(frozen=True)
class Fit:
    """The largest batch of a variant, with its bytes at no pair and for each pair."""

    variant: str
    batch: int  # 0 if not even one pair fits
    fixed: int
    per_pair: int
    measured: bool  # tried out, not counted
    predicted: int  # as counted


def fit_batches(
    host_model: HostModel,
    budget: int,
    variants: Sequence[str],
    precision: str = "fp32",
    checkpointing: bool = False,
) -> list[Fit]:
    """Count the largest batch of a training step that fits; the model is on the device "meta"."""
    fits = []
    for variant in variants:
        counted = count_memory(
            host_model, variant=variant, precision=precision, checkpointing=checkpointing
        )
        per_pair = counted.kept_at(1) - counted.kept_at(0)
        batch = counted.largest(budget)
        fits.append(Fit(variant, batch, counted.fixed, per_pair, measured=False, predicted=batch))
    return fits


def try_batches(
    host_model: HostModel, budget: int, counted: Sequence[Fit], precision: str = "fp32"
) -> list[Fit]:
    """Find the largest batches by trying them out on a GPU; nothing is filled above the budget."""
    weights, step = list(host_model.model.parameters()), PASSES["step"]

    def needed(variant: str, batch: int) -> int:
        made = make_variants(host_model, [variant], batch=batch, precision=precision)[variant]
        return _peak(partial(step.run, made, torch.optim.AdamW(weights)))

    fits = []
    for fit in counted:
        small = needed(fit.variant, 2)
        per_pair = (needed(fit.variant, 4) - small) // 2
        batch = largest_batch(lambda b, v=fit.variant: needed(v, b) <= budget)  # type: ignore[misc]
        fixed = small - 2 * per_pair
        fits.append(Fit(fit.variant, batch, fixed, per_pair, True, fit.predicted))
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


def largest_batch(fits: Callable[[int], bool]) -> int:
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
