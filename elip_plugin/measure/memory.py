"""The largest batch that fits a memory: tried out on a GPU, predicted elsewhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from elip_plugin.errors import ConfigError
from elip_plugin.measure.counts import saved_bytes
from elip_plugin.measure.speed import make_subject
from elip_plugin.measure.subject import stepped, variant_of

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
    """Read an amount of memory.

    Args:
        text: Such as "24GiB" or "80 GB".

    Returns:
        Bytes.

    Raises:
        ConfigError: If it is no such amount.
    """
    found = re.fullmatch(r"\s*([\d.]+)\s*([KMG]i?B)\s*", text, re.IGNORECASE)
    if found is None:
        raise ConfigError(f"{text!r} is no amount of memory: write such as 24GiB or 500MB")
    return int(float(found[1]) * UNITS[found[2].upper()])


def fit_batches(
    name: str,
    budget: int,
    *,
    variants: Sequence[str],
    image_size: int | None,
    device: str,
    precision: str,
) -> list[Fit]:
    """Find the largest batch of a training step that fits.

    On a GPU batches are doubled, then bisected, until the allocator's peak passes the budget.
    Elsewhere the bytes that autograd keeps at batches of 2 and 4 give a line, and weights,
    gradients and AdamW's moments are added.

    Args:
        name: A model name.
        budget: Bytes.
        variants: Names of variants.
        image_size: Pixels of a side; None for the model's own.
        device: Where to run; "" for a GPU where there is one.
        precision: "fp32" or "bf16".

    Returns:
        A fit for each variant.
    """

    def kept(batch: int, variant: str) -> tuple[int, int, bool]:
        subject = make_subject(
            name, batch=batch, image_size=image_size, device=device, precision=precision
        )
        model = variant_of(subject, variant)
        weights = list(subject.model.parameters())
        run = subject.passes(model)["step"]
        size = sum(p.numel() * p.element_size() for p in weights)
        if not weights[0].is_cuda:
            return saved_bytes(run, weights), STATES * size, False
        return _peak(stepped(run, torch.optim.AdamW(weights))), STATES * size, True

    fits = []
    for variant in variants:
        small, states, on_gpu = kept(2, variant)
        per_pair = (kept(4, variant)[0] - small) // 2
        fixed = small - 2 * per_pair + (0 if on_gpu else states)
        batch = max(0, (budget - fixed) // per_pair)
        if on_gpu:
            batch = _largest(lambda b, v=variant: kept(b, v)[0] <= budget)  # type: ignore[misc]
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
    """The largest batch that fits, to within an eighth."""
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


def print_fits(fits: Sequence[Fit]) -> None:
    """Print fits.

    Args:
        fits: What `fit_batches` found.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table("variant", "largest batch", "whatever the batch", "each pair", "how")
    for fit in fits:
        how = "tried out" if fit.measured else "predicted from what autograd keeps"
        fixed, pair = f"{fit.fixed / 2**30:.2f} GiB", f"{fit.per_pair / 2**20:.1f} MiB"
        table.add_row(fit.variant, str(fit.batch), fixed, pair, how)
    Console().print(table)
