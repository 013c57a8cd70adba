"""Speed of the image tower in several runtimes, pruned beside unpruned, in turn in one run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from elip_plugin import HostModel
from elip_plugin.errors import ConfigError
from elip_plugin.export.formats import FORMATS, find_format
from elip_plugin.export.tower import ImageTower, capture
from elip_plugin.measure.counts import count_flops
from elip_plugin.measure.speed import compare, time_in_turn
from elip_plugin.measure.variants import UNPRUNED, Variant, make_variants

RUNTIMES = ("torch", "compile", *(name for name in FORMATS if name != "torch"))
"""Eager torch, torch.compile, and the runtimes of exported files."""


@dataclass(frozen=True)
class RuntimeRow:
    """One variant in one runtime at one size of the batch; ratios are to the first variant."""

    runtime: str
    batch: int  # images
    variant: str
    seconds: float  # median, of a batch
    ratio: float  # median; the next two are the lowest and the highest
    low: float
    high: float
    counted: float  # operations, as a share of the first variant's: the limit


def measure_runtimes(
    host_model: HostModel,
    runtimes: Sequence[str],
    *,
    variants: Sequence[str] = (UNPRUNED, "embed"),
    batches: Sequence[int] = (1, 32),
    rounds: int = 7,
    progress: Callable[[str], None] = lambda text: None,
) -> list[RuntimeRow]:
    """Time the image tower in evaluation, pruned by the image.

    All variants, of which the first is the reference, run in turn, round by round. Returns a row
    for each runtime, batch and variant. Raises a ConfigError if a runtime is not known, and a
    MissingPackageError if one is not installed.
    """
    unknown = [name for name in runtimes if name not in RUNTIMES]
    if unknown:
        raise ConfigError(f"runtimes {unknown} are not known; choose from {list(RUNTIMES)}")
    if host_model.no_export:
        raise ConfigError(f"{host_model.name} cannot be exported: {host_model.no_export}")
    if any(weight.is_cuda for weight in host_model.model.parameters()):
        raise ConfigError("runtimes are compared on the processor: give --device cpu")
    for name in runtimes:
        if name in FORMATS and name != "torch":
            find_format(name)
    made = make_variants(host_model, variants, batch=2)
    for each in made.values():
        each.host_model.model.eval()
    counted = {name: count_flops(each.features) for name, each in made.items()}
    rows = []
    for runtime in runtimes:
        progress(f"{runtime}: making {', '.join(made)}")
        runs = {name: _run_by(runtime, each) for name, each in made.items()}
        for batch in batches:
            progress(f"{runtime}: {rounds} rounds of batches of {batch}")
            images = torch.randn(batch, *made[variants[0]].images.shape[1:])
            steps = {name: partial(run, images) for name, run in runs.items()}
            times = time_in_turn(steps, rounds)
            for name in times:
                share = counted[name] / counted[variants[0]]
                rows.append(RuntimeRow(runtime, batch, name, *compare(times, name), share))
    return rows


def _run_by(runtime: str, variant: Variant) -> Callable[[Tensor], Tensor]:
    module = ImageTower(variant.host_model).eval()
    if runtime in ("torch", "compile"):
        if runtime == "compile":
            module.compile()

        def run(images: Tensor) -> Tensor:
            # Compiled once for every size of the batch, but for this size of a picture alone.
            torch._dynamo.maybe_mark_dynamic(images, 0)
            with torch.no_grad(), variant.guided():
                features: Tensor = module(images)
            return features

        return run
    with variant.guided(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"image{FORMATS[runtime].suffix}"
        FORMATS[runtime].write(capture(module, (variant.images,)), path, ("images",))
        return FORMATS[runtime].open(path, torch.get_num_threads())
