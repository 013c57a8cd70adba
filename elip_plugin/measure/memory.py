"""The memory of a training step with AdamW: counted without a GPU, or tried out on one."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from elip_plugin.errors import ConfigError
from elip_plugin.hosts.base import HostModel
from elip_plugin.measure.allocations import count_step, weight_bytes, without_memory
from elip_plugin.measure.variants import PASSES, make_variants

UNITS = {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
PRECISIONS = ("fp32", "bf16", "pure_bf16")
"""float32; the same weights with bfloat16 autocast; weights and states in bfloat16 too."""

COUNTED = (4, 64)
"""Batches that are counted; others lie on the lines through these two."""

LARGEST = 2**20


@dataclass(frozen=True)
class StepMemory:
    """The bytes of a training step at any batch."""

    weights: int  # and buffers
    trained: int  # the weights that are; so much for each set of gradients
    images: int  # one image
    updating: int  # what AdamW takes for a while as it updates
    kept: tuple[int, int]  # from forward to backward, at each of `COUNTED`
    # The most in each section at each of `COUNTED`, with gradients and without AdamW's states.
    peaks: tuple[tuple[int, ...], tuple[int, ...]]

    @property
    def states(self) -> int:
        """AdamW's two moments."""
        return 2 * self.trained

    @property
    def fixed(self) -> int:
        """What is there whatever the batch: weights, gradients and AdamW's moments."""
        return self.weights + self.trained + self.states

    def kept_at(self, batch: int) -> int:
        """Return the bytes kept from forward to backward at a batch."""
        return _at(batch, *self.kept)

    def peak_at(self, batch: int) -> int:
        """Return the most bytes that a step holds at a batch."""
        step = max(_at(batch, low, high) for low, high in zip(*self.peaks))
        update = self.weights + self.trained + self.updating + batch * self.images
        return self.states + max(step, update)

    def largest(self, budget: int) -> int:
        """Return the largest batch that fits; 0 if not even one pair does."""
        return max(0, bisect_right(range(LARGEST + 1), budget, key=self.peak_at) - 1)


def _at(batch: int, low: int, high: int) -> int:
    """Return the value at a batch on the line through those at `COUNTED`."""
    first, second = COUNTED
    return low + (high - low) * (batch - first) // (second - first)


def count_memory(
    host_model: HostModel,
    *,
    variant: str = "",
    precision: str = "fp32",
    checkpointing: bool = False,
    on_gpu: bool = True,
) -> StepMemory:
    """Count the memory of a training step, without any.

    The step runs on tensors that have shapes and no memory, and every storage is followed from its
    allocation to its end; attention is fused where the model calls torch's own. Not counted: the
    device's context, workspaces of its kernels, what the allocator cannot use between blocks
    (fragmentation), and copies that several processes need to exchange gradients.

    The model is built on the device "meta", and counted as it is unless a variant is named.
    Autocast and AdamW follow torch's rules for a GPU, or for a CPU. Raises a ConfigError for an
    unknown precision, and an UnsupportedModelError if the model has no gradient checkpointing.
    """
    check_precisions([precision])
    dtype = torch.bfloat16 if precision == "pure_bf16" else torch.float32
    with without_memory(host_model, dtype) as copied:
        if variant:
            copied = make_variants(copied, [variant], batch=COUNTED[0])[variant].host_model
        copied.model.train()
        if checkpointing:
            copied.checkpoint()
        counts = [
            count_step(copied, batch, autocast=precision == "bf16", on_gpu=on_gpu)
            for batch in COUNTED
        ]
        weights, trained, largest = weight_bytes(copied.model)
        images = copied.example_batch(1)[0].numel() * dtype.itemsize
    (kept_low, low), (kept_high, high) = counts
    # On a GPU AdamW handles all weights at once, elsewhere one after the other.
    updating = trained if on_gpu else 2 * largest
    kept, peaks = (kept_low, kept_high), (tuple(low), tuple(high))
    return StepMemory(weights, trained, images, updating, kept, peaks)


@dataclass(frozen=True)
class Fit:
    """The largest batch of a variant, and the bytes of it whatever the batch and for each pair."""

    variant: str
    batch: int  # 0 if not even one pair fits
    fixed: int
    per_pair: int
    measured: bool  # tried out, not counted
    predicted: int  # as counted


def check_precisions(names: Sequence[str]) -> None:
    """Refuse precisions that are not known."""
    unknown = [name for name in names if name not in PRECISIONS]
    if unknown:
        raise ConfigError(f"precisions {unknown} are not known; choose from {list(PRECISIONS)}")


def parse_bytes(text: str) -> int:
    """Read an amount of memory."""
    found = re.fullmatch(r"\s*(\d+\.?\d*)\s*([KMG]i?B)\s*", text, re.IGNORECASE)
    if found is None:
        raise ConfigError(f"{text!r} is no amount of memory: write such as 24GiB or 500MB")
    return int(float(found[1]) * UNITS[found[2].upper()])


def fit_batches(
    host_model: HostModel, budget: int, variants: Sequence[str], precision: str = "fp32"
) -> list[Fit]:
    """Count the largest batch of a training step that fits; the model is on the device "meta"."""
    fits = []
    for variant in variants:
        counted = count_memory(host_model, variant=variant, precision=precision)
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
