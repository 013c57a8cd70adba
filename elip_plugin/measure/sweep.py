"""All that only a GPU can answer, in a limited time: each measurement is a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from elip_plugin.errors import ConfigError, DataError

LOG, REPORT = "log.jsonl", "report.md"
LONGEST, SHORTEST = 480.0, 15.0
"""Seconds after which one measurement is stopped, and of the time left below which none starts."""

DONE, NO_MEMORY, FAILED, TOO_LONG = "done", "out of memory", "failed", "took too long"
NO_TIME = "not started: the time was up"


@dataclass(frozen=True)
class Sweep:
    """The options of `elip bench gpu`; variants are joined by commas."""

    model: str
    batch: int
    device: str
    variants: str
    rounds: int = 7
    image_size: int | None = None
    data: str = ""
    workers: int = 4
    processes: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a measurement, and what it printed: the end of its errors if it failed."""

    name: str
    status: str
    seconds: float = 0.0
    printed: str = ""


def find_gpus() -> list[tuple[str, int]]:
    """Return the name and the bytes of each GPU."""
    found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [(gpu.name, gpu.total_memory) for gpu in found]


def run_sweep(
    sweep: Sweep,
    folder: Path,
    *,
    minutes: float = 30,
    progress: Callable[[str], None] = lambda text: None,
) -> Path:
    """Run the measurements that are not in the folder's log yet, and write all into one report.

    Args:
        sweep: What is measured.
        folder: Where log and report are.
        minutes: Time for this call. What is left then is measured by another call.
        progress: Is told what comes next, and what became of it.

    Returns:
        The report.

    Raises:
        ConfigError: If the time is not positive, or there is no GPU.
        DataError: If the folder's log is of another sweep.
    """
    if not minutes > 0:
        raise ConfigError(f"minutes must be above 0, got {minutes:g}")
    gpus = find_gpus() if sweep.device == "cuda" else []
    if sweep.device == "cuda" and not gpus:
        raise ConfigError("no GPU was found; --device cpu --toy tries the sweep out without one")
    end = time.monotonic() + 60 * minutes
    outcomes = _read_log(folder / LOG, sweep)
    for name, words in measurements(sweep, gpus).items():
        if name in outcomes and outcomes[name].status in (DONE, NO_MEMORY):
            progress(f"{name}: {outcomes[name].status} before")
            continue
        progress(f"{name} ...")
        outcomes[name] = _run(name, words, folder, min(LONGEST, end - time.monotonic()))
        progress(f"{name}: {outcomes[name].status}, {outcomes[name].seconds:.0f} s")
        _append(folder / LOG, asdict(outcomes[name]))
    return _write_report(sweep, gpus, outcomes.values(), folder)


def measurements(sweep: Sweep, gpus: Sequence[tuple[str, int]]) -> dict[str, list[str]]:
    """List the measurements by name, as arguments of Python, the most telling first."""
    common = ["--model", sweep.model, "--device", sweep.device, "--variants", sweep.variants]
    if sweep.image_size is not None:
        common += ["--image-size", str(sweep.image_size)]
    timed = [*common, "--batch", str(sweep.batch), "--rounds", str(sweep.rounds)]
    loader = ["--data", sweep.data, "--workers", str(sweep.workers)] if sweep.data else []
    bench = ["-m", "elip_plugin", "bench"]
    both = [*bench, "speed", *timed, "--passes", "tower,step", "--precision"]
    memory = min((size for _, size in gpus), default=2**30)
    fit = ["--precision", "bf16", "--fit", f"{0.9 * memory / 2**20:.0f}MiB"]
    found = {
        "bf16": [*bench, "speed", *timed, "--precision", "bf16", *loader],
        "fp32": [*both, "fp32"],
        "memory bf16": [*bench, "memory", *common, *fit],
    }
    for count in counts_up_to(sweep.processes or len(gpus)):
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        found[f"{count} processes"] = [*launcher, *bench, "together", *timed]
    return found | {
        "bf16 plain attention": [*both, "bf16", "--attention", "plain"],
        "bf16 compiled": [*both, "bf16", "--compile"],
        "fp32 compiled": [*both, "fp32", "--compile"],
    }


def counts_up_to(most: int) -> list[int]:
    """List the powers of two below a number of processes, and the number; none for one process."""
    return [*(2**i for i in range((most - 1).bit_length())), most] if most > 1 else []


def _run(name: str, words: list[str], folder: Path, seconds: float) -> Outcome:
    """Run this Python with some arguments, and see what becomes of it."""
    if seconds < SHORTEST:
        return Outcome(name, NO_TIME)
    out = [] if "together" in words else ["--out", str(folder / _slug(name))]
    start = time.monotonic()
    # A session of its own, so that processes which it started end with it.
    process = subprocess.Popen(
        [sys.executable, *words, *out],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed, errors = process.communicate(timeout=seconds)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        if isinstance(error, subprocess.TimeoutExpired):
            return Outcome(name, TOO_LONG, seconds, process.communicate()[1][-400:])
        raise
    took = time.monotonic() - start
    if process.returncode == 0:
        return Outcome(name, DONE, took, printed)
    status = NO_MEMORY if "out of memory" in errors.lower() else FAILED
    return Outcome(name, status, took, errors[-400:])


def _slug(name: str) -> str:
    return name.replace(" ", "-")


def _write_report(
    sweep: Sweep, gpus: Sequence[tuple[str, int]], outcomes: Iterable[Outcome], folder: Path
) -> Path:
    """Write what each measurement printed into a Markdown file, with the charts that they drew."""
    cards = [f"{name}, {size / 2**30:.0f} GiB" for name, size in gpus] or ["no GPU"]
    counts = ", ".join(f"{cards.count(card)} x {card}" for card in dict.fromkeys(cards))
    lines = [f"# {sweep.model}, batch {sweep.batch} per process", ""]
    lines += [f"{counts}; torch {torch.__version__}, CUDA {torch.version.cuda}"]
    for outcome in outcomes:
        lines += ["", f"## {outcome.name}: {outcome.status}, {outcome.seconds:.0f} s", ""]
        lines += ["```", outcome.printed.strip(), "```"] if outcome.printed.strip() else []
        chart = f"{_slug(outcome.name)}/speed.svg"
        if outcome.status == DONE and (folder / chart).is_file():
            lines += ["", f"![{outcome.name}: time over the first variant's]({chart})"]
    (folder / REPORT).write_text("\n".join(lines) + "\n")
    return folder / REPORT


def _read_log(log: Path, sweep: Sweep) -> dict[str, Outcome]:
    """Read what was measured before; begin the log if there is none."""
    lines = []
    for line in log.read_text().splitlines() if log.is_file() else ():
        with suppress(ValueError):  # of a line that was cut short: it is measured again
            lines.append(json.loads(line))
    if not lines:
        _append(log, {"sweep": asdict(sweep)})
        return {}
    if (known := lines[0].get("sweep")) != asdict(sweep):
        raise DataError(
            f"{log} is of another sweep ({known}): give the same options, or another folder"
        )
    return {line["name"]: Outcome(**line) for line in lines[1:]}


def _append(log: Path, line: Mapping[str, object]) -> None:
    with log.open("a") as file:
        file.write("\n" + json.dumps(line))  # a line that was cut short stays by itself
