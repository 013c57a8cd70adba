"""Speed, arithmetic and memory of a model's variants, side by side in one run."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from elip_plugin.config import ElipConfig
from elip_plugin.errors import ConfigError
from elip_plugin.hosts.base import HostModel
from elip_plugin.label import label_of
from elip_plugin.measure.counts import count_flops, saved_bytes
from elip_plugin.measure.variants import PASSES, UNPRUNED, Pass, Variant, make_variants

WARMUP = 2
"""Rounds that are not counted."""


@dataclass(frozen=True)
class Row:
    """One pass of one variant; the ratios are those to the first variant, round by round."""

    variant: str
    measured: str  # name of the pass
    seconds: float  # median
    ratio: float  # median; the next two are the lowest and the highest
    low: float
    high: float
    flops: int  # of the tower's forward for "inference", else of a training step
    memory: int  # bytes: on a GPU the allocator's peak, else what backward keeps


@dataclass(frozen=True)
class Setting:
    """Where and how a run was made."""

    model: str
    label: str  # model, plan, evaluation and weights
    batch: int
    device: str
    threads: int
    precision: str
    compiled: bool
    rounds: int
    torch: str
    image_size: int
    on_gpu: bool


def measure_speed(
    host_model: HostModel,
    *,
    variants: Sequence[str] = (UNPRUNED,),
    own: ElipConfig | None = None,
    passes: Sequence[str] = tuple(PASSES),
    batch: int = 8,
    precision: str = "fp32",
    rounds: int = 7,
    compiled: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> tuple[Setting, list[Row]]:
    """Time variants of a model in turn, round by round; count their arithmetic and memory.

    The first variant is the reference; `own` is a plan besides those that have names. Returns where
    and how it was measured, and a row for each pass of each variant. Raises a ConfigError if a name
    is not known.
    """
    unknown = [name for name in passes if name not in PASSES]
    if unknown:
        raise ConfigError(f"--passes {unknown} are not known; choose from {list(PASSES)}")
    by_name = make_variants(
        host_model, variants, batch=batch, own=own, precision=precision, compiled=compiled
    )
    optimizer = torch.optim.AdamW(host_model.model.parameters(), lr=1e-6)
    rows = []
    for name in passes:
        progress(f"{name}: timing {', '.join(by_name)}")
        steps = {}
        for key, variant in by_name.items():
            variant.host_model.model.train(PASSES[name].training)
            steps[key] = timed(partial(PASSES[name].run, variant, optimizer))
        times = time_in_turn(steps, rounds)
        for key, variant in by_name.items():
            memory = _count_memory(PASSES[name], variant, steps[key], compiled)
            # The counter follows gradients, so inference is counted with them; its products are
            # the same.
            run = steps[key] if PASSES[name].training else partial(PASSES[name].forward, variant)
            flops = 0 if compiled else count_flops(run)
            rows.append(Row(key, name, *compare(times, key), flops, memory))
    images = by_name[variants[0]].images
    setting = Setting(
        model=host_model.name,
        label=label_of(host_model, with_plan=own is not None),
        batch=batch,
        device=torch.cuda.get_device_name(images.device) if images.is_cuda else processor(),
        threads=torch.get_num_threads(),
        precision=precision,
        compiled=compiled,
        rounds=rounds,
        torch=torch.__version__.partition("+")[0],
        image_size=images.shape[2],
        on_gpu=images.is_cuda,
    )
    return setting, rows


def time_in_turn(steps: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time each step in each round, so that a drifting machine treats all equally."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(WARMUP + rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return {name: times[WARMUP:] for name, times in seconds.items()}


def compare(times: Mapping[str, Sequence[float]], name: str) -> tuple[float, float, float, float]:
    """Return the median time, and the median, lowest and highest ratio to the first, by round."""
    first = next(iter(times.values()))
    ratios = [a / b for a, b in zip(times[name], first, strict=True)]
    return statistics.median(times[name]), statistics.median(ratios), min(ratios), max(ratios)


def timed(step: Callable[[], object]) -> Callable[[], object]:
    """Return a step that waits for a GPU."""
    if not torch.cuda.is_available():
        return step

    def waiting() -> None:
        step()
        torch.cuda.synchronize()

    return waiting


def _count_memory(
    measured: Pass, variant: Variant, step: Callable[[], object], compiled: bool
) -> int:
    """Count bytes: the allocator's peak on a GPU, else what autograd keeps."""
    if variant.images.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()
    if compiled or not measured.training:
        return 0
    return saved_bytes(partial(measured.forward, variant), variant.host_model.model.parameters())


def processor() -> str:
    """Return the name of this machine's processor, or of its architecture."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
