"""All that only a GPU can answer, in a limited time: each measurement is a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from elip_plugin.errors import ConfigError, DataError
from elip_plugin.files import write_text

SETTINGS, REPORT = "sweep.json", "report.md"
DONE, NO_MEMORY = "done", "out of memory"
LONGEST, SHORTEST = 480.0, 15.0
"""Seconds after which one measurement is stopped, and of the time left below which none starts."""


@dataclass(frozen=True)
class Sweep:
    """The options of `gpu`; variants are joined by commas."""

    model: str
    batch: int
    device: str
    variants: str
    rounds: int = 7
    image_size: int | None = None
    data: str = ""
    workers: int = 4
    processes: int | None = None


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
    """Run the measurements that an earlier call did not end, and write one report of all.

    What each of them printed is a file in the folder. What is left after the minutes is measured by
    another call. Raises a ConfigError if the time is not positive, or there is no GPU, and a
    DataError if the folder is of another sweep.
    """
    if not minutes > 0:
        raise ConfigError(f"minutes must be above 0, got {minutes:g}")
    gpus = find_gpus() if sweep.device == "cuda" else []
    if sweep.device == "cuda" and not gpus:
        raise ConfigError("no GPU was found; --device cpu --toy tries the sweep out without one")
    _check_settings(folder / SETTINGS, json.dumps(asdict(sweep), indent=1))
    end = time.monotonic() + 60 * minutes
    sections = [_title(sweep, gpus)]
    for name, words in measurements(sweep, gpus).items():
        out = folder / name.replace(" ", "-")
        if (ended := out.with_suffix(".txt")).is_file():
            status, _, printed = ended.read_text().partition("\n")
        else:
            progress(f"{name} ...")
            status, printed = _run(words, out, min(LONGEST, end - time.monotonic()))
            if status in (DONE, NO_MEMORY):  # another run would find the same
                write_text(ended, f"{status}\n{printed}")
        progress(f"{name}: {status}")
        sections.append(f"## {name}: {status}\n\n```\n{printed}\n```")
    write_text(folder / REPORT, "\n\n".join(sections) + "\n")
    return folder / REPORT


def _check_settings(file: Path, settings: str) -> None:
    """Refuse a folder of another sweep."""
    if file.is_file() and file.read_text() != settings:
        raise DataError(f"{file} is of another sweep: give the same options, or another folder")
    write_text(file, settings)


def _title(sweep: Sweep, gpus: Sequence[tuple[str, int]]) -> str:
    cards = [f"{name}, {size / 2**30:.0f} GiB" for name, size in gpus] or ["no GPU"]
    counts = ", ".join(f"{cards.count(card)} x {card}" for card in dict.fromkeys(cards))
    return (
        f"# {sweep.model}, batch {sweep.batch} per process\n\n"
        f"{counts}; torch {torch.__version__}, CUDA {torch.version.cuda}"
    )


def measurements(sweep: Sweep, gpus: Sequence[tuple[str, int]]) -> dict[str, list[str]]:
    """List the measurements by name, as arguments of Python, the most telling first."""
    common = ["--model", sweep.model, "--device", sweep.device, "--variants", sweep.variants]
    size = [] if sweep.image_size is None else ["--image-size", str(sweep.image_size)]
    common += size
    timed = [*common, "--batch", str(sweep.batch), "--rounds", str(sweep.rounds)]
    bench, machine = ["-m", "elip_plugin", "bench"], ["-m", "benchmarks.machine"]
    both = [*bench, "speed", *timed, "--passes", "tower,step", "--precision"]
    memory = min((size for _, size in gpus), default=2**30)
    fit = ["--precision", "bf16", "--fit", f"{0.9 * memory / 2**20:.0f}MiB"]
    found = {
        "bf16": [*bench, "speed", *timed, "--precision", "bf16"],
        "fp32": [*both, "fp32"],
        "memory bf16": [*machine, "memory", *common, *fit],
    }
    if sweep.data:
        sized = ["--batch", str(sweep.batch), "--workers", str(sweep.workers), *size]
        found["loading"] = [
            *machine,
            "loading",
            "--model",
            sweep.model,
            "--data",
            sweep.data,
            *sized,
        ]
    for count in counts_up_to(sweep.processes or len(gpus)):
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        found[f"{count} processes"] = [*launcher, *machine, "ddp-step", *timed]
    return found | {
        "bf16 plain attention": [*machine, "attention", *timed, "--precision", "bf16"],
        "bf16 compiled": [*both, "bf16", "--compile"],
        "fp32 compiled": [*both, "fp32", "--compile"],
    }


def counts_up_to(most: int) -> list[int]:
    """List the powers of two below a number of processes, and the number; none for one process."""
    return [*(2**i for i in range((most - 1).bit_length())), most] if most > 1 else []


def _run(words: list[str], out: Path, seconds: float) -> tuple[str, str]:
    """Run this Python with some arguments; return what became of it, and what it printed."""
    if seconds < SHORTEST:
        return "not started: the time was up", ""
    options = [] if {"ddp-step", "loading"} & {*words} else ["--out", str(out)]
    # A session of its own, so that processes which it started end with it.
    process = subprocess.Popen(
        [sys.executable, *words, *options],
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
            return "took too long", process.communicate()[1][-400:].strip()
        raise
    if process.returncode == 0:
        return DONE, printed.strip()
    return NO_MEMORY if "out of memory" in errors.lower() else "failed", errors[-400:].strip()
