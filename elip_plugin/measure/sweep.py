"""All that only a GPU can answer, in a limited time: each measurement is a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from elip_plugin.errors import ConfigError, DataError

LOG, REPORT = "log.jsonl", "report.md"
LONGEST, SHORTEST = 480.0, 15.0
"""Seconds after which one measurement is stopped, and of the time left below which none starts."""

DONE, NO_MEMORY, FAILED, TOO_LONG, NO_TIME = (
    "done",
    "out of memory",
    "failed",
    "took too long",
    "not started: the time was up",
)
FINAL = (DONE, NO_MEMORY)
"""Outcomes that another run would find again."""

DEVICE = """
import torch
print("torch", torch.__version__, "CUDA", torch.version.cuda)
for i in range(torch.cuda.device_count() if {gpu} else 0):
    found = torch.cuda.get_device_properties(i)
    print(f"{{found.name}}, {{found.total_memory / 2**20:.0f}}MiB")
"""


@dataclass(frozen=True)
class Sweep:
    """What is measured, and with what: the options of `elip bench gpu`."""

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
    """What became of a measurement.

    Attributes:
        name: Its name.
        status: "done", or why there is no result.
        seconds: How long it took.
        printed: What it printed; the end of its errors if it was not done.
    """

    name: str
    status: str
    seconds: float
    printed: str = ""


def run_sweep(
    sweep: Sweep,
    folder: Path,
    *,
    minutes: float = 30,
    progress: Callable[[str], None] = lambda text: None,
) -> Path:
    """Run the measurements that are not in the folder's log yet, the most telling first.

    Args:
        sweep: What is measured.
        folder: Where the log and the report are.
        minutes: Time for this call. What is left then is measured by another call.
        progress: Is told what comes next, and what became of it.

    Returns:
        The report, which has the outcomes of earlier calls too.

    Raises:
        ConfigError: If the time is not positive, or there is no GPU.
        DataError: If the folder's log is of another sweep.
    """
    if not minutes > 0:
        raise ConfigError(f"minutes must be above 0, got {minutes:g}")
    end = time.monotonic() + 60 * minutes
    outcomes = _read_log(folder / LOG, sweep)
    device = _run("device", ["-c", DEVICE.format(gpu=sweep.device == "cuda")], LONGEST)
    gpus = device.printed.splitlines()[1:]
    if device.status != DONE or (sweep.device == "cuda" and not gpus):
        raise ConfigError(
            f"no GPU was found ({device.printed.strip()}); --device cpu --toy tries the sweep out "
            "without one"
        )
    for name, words in measurements(sweep, gpus).items():
        if name in outcomes and outcomes[name].status in FINAL:
            progress(f"{name}: {outcomes[name].status} before")
            continue
        progress(f"{name} ...")
        left, out = min(LONGEST, end - time.monotonic()), ["--out", str(folder / _slug(name))]
        outcome = Outcome(name, NO_TIME, 0.0)
        if left >= SHORTEST:
            outcome = _run(name, words + (out if "bench" in words[:3] else []), left)
        progress(f"{name}: {outcome.status}, {outcome.seconds:.0f} s")
        outcomes[name] = outcome
        _append(folder / LOG, asdict(outcome))
    return write_report(sweep, device.printed, outcomes, folder)


def measurements(sweep: Sweep, gpus: list[str]) -> dict[str, list[str]]:
    """List the measurements by name, as arguments of Python, the most telling first.

    Args:
        sweep: What is measured.
        gpus: The name and the memory of each GPU.

    Returns:
        The measurements.
    """
    common = ["--model", sweep.model, "--device", sweep.device, "--variants", sweep.variants]
    if sweep.image_size is not None:
        common += ["--image-size", str(sweep.image_size)]
    timed = [*common, "--batch", str(sweep.batch), "--rounds", str(sweep.rounds)]
    loader = ["--data", sweep.data, "--workers", str(sweep.workers)] if sweep.data else []
    speed = ["-m", "elip_plugin", "bench", "speed", *timed]
    both = [*speed, "--passes", "tower,step"]
    memory = min((int(gpu.rpartition(", ")[2].removesuffix("MiB")) for gpu in gpus), default=1024)
    fit = ["--fit", f"{0.9 * memory:.0f}MiB", "--precision", "bf16"]
    found = {
        "bf16": [*speed, "--precision", "bf16", *loader],
        "fp32": [*both, "--precision", "fp32"],
        "memory bf16": ["-m", "elip_plugin", "bench", "memory", *common, *fit],
    }
    for count in counts_up_to(sweep.processes or len(gpus)):
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        found[f"{count} processes"] = [*launcher, "-m", "elip_plugin", "bench", "together", *timed]
    return found | {
        "bf16 plain attention": [*both, "--precision", "bf16", "--attention", "plain"],
        "bf16 compiled": [*both, "--precision", "bf16", "--compile"],
        "fp32 compiled": [*both, "--precision", "fp32", "--compile"],
    }


def counts_up_to(most: int) -> list[int]:
    """List the powers of two below a number of processes, and the number; none for one process."""
    return [*(2**i for i in range((most - 1).bit_length())), most] if most > 1 else []


def write_report(sweep: Sweep, device: str, outcomes: Mapping[str, Outcome], folder: Path) -> Path:
    """Write what each measurement printed into one Markdown file, with the charts that they drew.

    Args:
        sweep: What was measured.
        device: What is known of the machine.
        outcomes: What was found, by name.
        folder: Where the log is.

    Returns:
        The file.
    """
    lines = [f"# {sweep.model}, batch {sweep.batch} per process", "", f"```\n{device.strip()}\n```"]
    for outcome in outcomes.values():
        lines += ["", f"## {outcome.name}: {outcome.status}, {outcome.seconds:.0f} s", ""]
        lines += [f"```\n{outcome.printed.strip()}\n```"] if outcome.printed.strip() else []
        chart = f"{_slug(outcome.name)}/speed.svg"
        if outcome.status == DONE and (folder / chart).is_file():
            lines += ["", f"![{outcome.name}: time over the first variant's]({chart})"]
    (folder / REPORT).write_text("\n".join(lines) + "\n")
    return folder / REPORT


def _slug(name: str) -> str:
    return name.replace(" ", "-")


def _run(name: str, words: list[str], seconds: float) -> Outcome:
    """Run this Python with some arguments, and see what becomes of it."""
    start = time.monotonic()
    # A group of its own, so that processes which it started end with it.
    process = subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed, errors = process.communicate(timeout=seconds)
    except BaseException as error:
        _kill(process)
        if isinstance(error, subprocess.TimeoutExpired):
            return Outcome(name, TOO_LONG, seconds, process.communicate()[1][-400:])
        raise
    took = time.monotonic() - start
    if process.returncode == 0:
        return Outcome(name, DONE, took, printed)
    status = NO_MEMORY if "out of memory" in errors.lower() else FAILED
    return Outcome(name, status, took, errors[-400:])


def _kill(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, AttributeError):  # it has ended, or the system has no groups
        process.kill()


def _read_log(log: Path, sweep: Sweep) -> dict[str, Outcome]:
    """Read what was measured before; begin the log if there is none."""
    lines = []
    for line in log.read_text().splitlines() if log.is_file() else ():
        with suppress(ValueError):  # of a line that was cut short: it is measured again
            lines.append(json.loads(line))
    if not lines:
        _append(log, {"sweep": asdict(sweep)})
        return {}
    if lines[0].get("sweep") != asdict(sweep):
        raise DataError(
            f"{log} is of another sweep ({lines[0].get('sweep')}): give the same options, or "
            "another folder"
        )
    return {line["name"]: Outcome(**line) for line in lines[1:]}


def _append(log: Path, line: Mapping[str, object]) -> None:
    with log.open("a") as file:
        file.write("\n" + json.dumps(line))  # a line that was cut short stays by itself
