"""Speed, arithmetic and memory of a model's variants, side by side in one run."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch

from elip_plugin.errors import ConfigError
from elip_plugin.hosts.registry import load_host_by_model
from elip_plugin.measure.counts import count_flops, saved_bytes
from elip_plugin.measure.steps import StepTimes, time_steps
from elip_plugin.measure.subject import VARIANTS, Subject, stepped, variant_of

PASSES = ("inference", "tower", "step")
"""What is timed: image features in evaluation (`eval: image`); forward and backward of the vision
tower, the text guide ready; the whole training step with AdamW."""

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Row:
    """One pass of one variant.

    Attributes:
        variant: Its name.
        measured: "inference", "tower" or "step".
        seconds: Median time.
        ratio: Median of the per-round ratios to the first variant.
        low: Lowest of them.
        high: Highest of them.
        flops: Operations, those of the tower's forward for "inference", else a training step's.
        memory: Bytes: on a GPU the allocator's peak, else what is kept for the backward pass.
    """

    variant: str
    measured: str
    seconds: float
    ratio: float
    low: float
    high: float
    flops: int
    memory: int


@dataclass(frozen=True)
class Setting:
    """Where and how a run was made."""

    model: str
    batch: int
    device: str
    threads: int
    precision: str
    compiled: bool
    rounds: int
    torch: str
    image_size: int
    on_gpu: bool


def precision_context(name: str, device: str) -> Callable[[], AbstractContextManager[Any]]:
    """Make the context of a precision.

    Args:
        name: A key of `PRECISIONS`.
        device: Where passes run.

    Returns:
        A function that makes the context: autocast, or nothing for fp32.
    """
    dtype = PRECISIONS[name]
    if dtype is None:
        return nullcontext
    return lambda: torch.autocast(torch.device(device).type, dtype=dtype)


def bench(
    subject: Subject,
    variants: Iterable[str],
    measured: Sequence[str],
    *,
    rounds: int,
    compiled: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Measure variants in turn, round by round.

    Args:
        subject: What to measure; the ratios are to the first variant.
        variants: Names of `VARIANTS` and of the subject's references.
        measured: Names of `PASSES`.
        rounds: How many rounds count.
        compiled: Whether to compile each variant.
        progress: Told what comes next.

    Returns:
        A row for each pass and variant.

    Raises:
        ConfigError: If a variant is not known.
    """
    names = list(variants)
    known = [*VARIANTS, *subject.references]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"variants {unknown} are not known; choose from {known}")
    models = {name: variant_of(subject, name) for name in names}
    optimizer = torch.optim.AdamW(subject.model.parameters(), lr=1e-6)
    if compiled:
        for model in models.values():
            _compile(model)
    runs = {name: subject.passes(model) for name, model in models.items()}
    rows = []
    for what in measured:
        progress(f"{what}: {rounds} rounds of {', '.join(names)}")
        steps: dict[str, Callable[[], object]] = {}
        for name in names:
            steps[name] = _timed(_step(runs[name][what], what, optimizer, models[name]))
        times = time_steps(steps, rounds=rounds)
        for name in names:
            flops, memory = _counts(what, runs[name], steps[name], models[name], compiled)
            rows.append(_row(name, what, times[name], flops, memory))
    return rows


def _compile(model: Any) -> None:
    """Compile a model in place, and its tower, which some passes call alone."""
    model.compile()
    getattr(model, "visual_encoder", getattr(model, "visual", model)).compile()


def _step(
    run: Callable[[], torch.Tensor], what: str, optimizer: torch.optim.Optimizer, model: Any
) -> Callable[[], object]:
    if what == "inference":
        return torch.no_grad()(run)
    if what == "step":
        return stepped(run, optimizer)

    def backward() -> None:
        model.zero_grad(set_to_none=True)
        torch.autograd.backward(run())

    return backward


def _timed(step: Callable[[], object]) -> Callable[[], object]:
    """A step that waits for a GPU."""
    if not torch.cuda.is_available():
        return step

    def waiting() -> None:
        step()
        torch.cuda.synchronize()

    return waiting


def _counts(
    what: str, runs: Any, step: Callable[[], object], model: Any, compiled: bool
) -> tuple[int, int]:
    """Operations, and bytes: the allocator's peak on a GPU, else what autograd keeps."""
    on_gpu = next(model.parameters()).is_cuda
    # The counter follows gradients, so inference is counted with them; its products are the same.
    flops = 0 if compiled else count_flops(runs[what] if what == "inference" else step)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        step()
        return flops, torch.cuda.max_memory_allocated()
    if what == "inference" or compiled:
        return flops, 0
    return flops, saved_bytes(runs[what], model.parameters())


def _row(name: str, what: str, times: StepTimes, flops: int, memory: int) -> Row:
    low, high = times.spread
    return Row(name, what, times.median, times.ratio, low, high, flops, memory)


def make_subject(
    name: str, *, batch: int, image_size: int | None, device: str, precision: str
) -> Subject:
    """Make a model by name, and a batch for it.

    Args:
        name: A name of OpenCLIP's or LAVIS' models, with or without our prefix.
        batch: Pairs per batch.
        image_size: Pixels of a side; None for the model's own.
        device: Where to run; "" for a GPU where there is one.
        precision: A key of `PRECISIONS`.

    Returns:
        The subject.

    Raises:
        ConfigError: If a value is out of range.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision must be one of {list(PRECISIONS)}, got {precision!r}")
    if batch < 1:
        raise ConfigError(f"batch must be 1 or more, got {batch}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    host = load_host_by_model(name)
    context = precision_context(name=precision, device=device)
    made: Subject = host.subject(
        name, batch=batch, image_size=image_size, device=device, precision=context
    )
    return made


def run(
    name: str,
    *,
    variants: Sequence[str],
    passes: Sequence[str],
    batch: int,
    image_size: int | None,
    device: str,
    precision: str,
    rounds: int,
    compiled: bool,
    progress: Callable[[str], None],
) -> tuple[Setting, list[Row]]:
    """Measure a model by name.

    Args:
        name: A model name.
        variants: See `bench`.
        passes: Names of `PASSES`.
        batch: Pairs per batch.
        image_size: Pixels of a side; None for the model's own.
        device: Where to run; "" for a GPU where there is one.
        precision: A key of `PRECISIONS`.
        rounds: How many rounds count.
        compiled: Whether to compile each variant.
        progress: Told what comes next.

    Returns:
        Where and how, and a row for each pass and variant.

    Raises:
        ConfigError: If a value is out of range.
    """
    unknown = [what for what in passes if what not in PASSES]
    if unknown:
        raise ConfigError(f"passes {unknown} are not known; choose from {list(PASSES)}")
    subject = make_subject(
        name, batch=batch, image_size=image_size, device=device, precision=precision
    )
    fitting = [variant for variant in variants if variant not in subject.unsuited]
    for variant in (v for v in variants if v not in fitting):
        progress(f"{variant} is left out: it is not for {subject.name}")
    rows = bench(subject, fitting, passes, rounds=rounds, compiled=compiled, progress=progress)
    where = next(subject.model.parameters()).device
    on_gpu = where.type == "cuda"
    made = Setting(
        model=subject.name,
        batch=batch,
        device=torch.cuda.get_device_name(where) if on_gpu else processor(),
        threads=torch.get_num_threads(),
        precision=precision,
        compiled=compiled,
        rounds=rounds,
        torch=torch.__version__.partition("+")[0],
        image_size=subject.image_size,
        on_gpu=on_gpu,
    )
    return made, rows


def reference_of(row: Row, rows: Iterable[Row]) -> Row:
    """Find the row that a row's ratio refers to.

    Args:
        row: The row.
        rows: All rows of its run.

    Returns:
        The first row of the same pass.
    """
    return next(other for other in rows if other.measured == row.measured)


def processor() -> str:
    """Name this machine's processor.

    Returns:
        Its model, or its architecture where that is not told.
    """
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if "model name" in line]
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def as_mapping(made: Setting, rows: Iterable[Row]) -> dict[str, Any]:
    """Turn a run into plain values.

    Args:
        made: Where and how.
        rows: What was measured.

    Returns:
        A mapping fit for JSON.
    """
    return {"setting": asdict(made), "rows": [asdict(row) for row in rows]}
