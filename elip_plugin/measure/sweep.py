"""All that only a GPU can answer, in a limited time: each measurement is a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from elip_plugin.errors import ConfigError, DataError

LOG = "log.jsonl"
LONGEST = 480.0
"""Seconds after which one measurement is stopped."""

SHORTEST = 15.0
"""Seconds left below which no measurement is started."""

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
import json, torch
c = torch.cuda
found = [c.get_device_properties(i) for i in range(c.device_count())] if {gpu} else []
print(json.dumps({{
    "names": [p.name for p in found], "memory": [p.total_memory for p in found],
    "torch": torch.__version__, "cuda": torch.version.cuda,
}}))
"""


@dataclass(frozen=True)
class Sweep:
    """What is measured, and with what.

    Attributes:
        model: Name of a pruned model.
        batch: Pairs per batch and device.
        device: "cuda", or "cpu" to try the sweep out.
        variants: The reference first.
        rounds: Rounds that count.
        image_size: Pixels of a side; None for the model's own.
        data: A folder of images or a shard, for the loader; "" for none.
        workers: Processes that load.
        processes: How many processes train together, at most; None for as many as there are GPUs.
    """

    model: str
    batch: int
    device: str = "cuda"
    variants: tuple[str, ...] = ("full", "paper", "fast", "random")
    rounds: int = 7
    image_size: int | None = None
    data: str = ""
    workers: int = 4
    processes: int | None = None


@dataclass(frozen=True)
class Measurement:
    """One process.

    Attributes:
        name: What is measured.
        command: Arguments of this Python.
        file: The JSON file that it writes; "" if it prints its result.
    """

    name: str
    command: tuple[str, ...]
    file: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a measurement.

    Attributes:
        name: Its name.
        status: "done", or why there is no result.
        seconds: How long it took.
        result: What it found.
        message: The end of what it said, if it failed.
    """

    name: str
    status: str
    seconds: float
    result: dict[str, Any] = field(default_factory=dict)
    message: str = ""


def run_sweep(
    sweep: Sweep,
    folder: Path,
    *,
    minutes: float = 30,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Outcome]:
    """Run the measurements that are not in the folder's log yet, the most telling first.

    Args:
        sweep: What is measured.
        folder: Where the log is; made if it is not there.
        minutes: Time for this call. What is left then is measured by another call.
        progress: Is told what comes next, and what became of it.

    Returns:
        All outcomes by name, those of earlier calls included.

    Raises:
        ConfigError: If the time is not positive.
        DataError: If the folder's log is of another sweep, or cannot be read.
    """
    if not minutes > 0:
        raise ConfigError(f"minutes must be above 0, got {minutes:g}")
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / LOG
    outcomes = _read_log(log, sweep)
    end = time.monotonic() + 60 * minutes
    device = _device(sweep)
    found = outcomes.get(device.name)
    if found is None or found.status != DONE:
        found = outcomes[device.name] = _measure(device, folder, _time_left(end))
        _append(log, asdict(found))
    if sweep.device == "cuda" and not found.result.get("names"):
        raise ConfigError(
            f"no GPU was found ({found.message or 'torch.cuda.device_count() is 0'}); "
            "--device cpu --toy tries the sweep out without one"
        )
    for measurement in measurements(sweep, found.result):
        before = outcomes.get(measurement.name)
        if before is not None and before.status in FINAL:
            progress(f"{measurement.name}: {before.status} before")
            continue
        progress(f"{measurement.name} ...")
        outcome = _measure(measurement, folder, _time_left(end))
        progress(f"{measurement.name}: {outcome.status}, {outcome.seconds:.0f} s")
        outcomes[measurement.name] = outcome
        _append(log, asdict(outcome))
    return outcomes


def _time_left(end: float) -> float:
    return min(LONGEST, end - time.monotonic())


def _device(sweep: Sweep) -> Measurement:
    return Measurement("device", ("-c", DEVICE.format(gpu=sweep.device == "cuda")))


def measurements(sweep: Sweep, device: Mapping[str, Any]) -> Iterator[Measurement]:
    """Return the measurements, the most telling first.

    Args:
        sweep: What is measured.
        device: What is known of the machine: the `names` and the `memory` of its GPUs.

    Yields:
        The measurements.
    """
    variants = ",".join(sweep.variants)
    common = ["--model", sweep.model, "--device", sweep.device]
    if sweep.image_size is not None:
        common += ["--image-size", str(sweep.image_size)]
    timed = ["--batch", str(sweep.batch), "--rounds", str(sweep.rounds), "--variants", variants]
    loader = ["--data", sweep.data, "--workers", str(sweep.workers)] if sweep.data else []

    def speed(name: str, *options: str) -> Measurement:
        command = ("-m", "elip_plugin", "bench", "speed", *common, *timed, *options)
        return Measurement(name, command, "speed.json")

    both = ("--passes", "tower,step")
    yield speed("bf16", "--precision", "bf16", *loader)
    yield speed("fp32", "--precision", "fp32", *both)
    memory = max(device.get("memory") or [0]) or 2**30
    fit = ["--fit", f"{0.9 * memory / 2**20:.0f}MiB", "--precision", "bf16"]
    command = ("-m", "elip_plugin", "bench", "memory", *common, *fit, "--variants", variants)
    yield Measurement("memory bf16", command, "memory.json")
    most = sweep.processes or len(device.get("names") or ())
    counts = [2**i for i in range(most.bit_length())] if most > 1 else []
    for count in counts:
        command = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}")
        command += ("-m", "elip_plugin.measure.scaling", *common, *timed)
        yield Measurement(f"{count} processes", command, "scaling.json")
    yield speed("bf16 plain attention", "--precision", "bf16", "--attention", "plain", *both)
    yield speed("bf16 compiled", "--precision", "bf16", "--compile", *both)
    yield speed("fp32 compiled", "--precision", "fp32", "--compile", *both)


def _measure(measurement: Measurement, folder: Path, seconds: float) -> Outcome:
    """Run a measurement in a process of its own."""
    if seconds < SHORTEST and measurement.file:
        return Outcome(measurement.name, NO_TIME, 0.0)
    out = folder / measurement.name.replace(" ", "-")
    options = ["--out", str(out)] if measurement.file else []
    start = time.monotonic()
    status, output = _run([sys.executable, *measurement.command, *options], max(seconds, SHORTEST))
    took = time.monotonic() - start
    (folder / f"{out.name}.txt").write_text(output)
    if status != DONE:
        return Outcome(measurement.name, status, took, message=output[-400:])
    text = (out / measurement.file).read_text() if measurement.file else output.splitlines()[-1]
    return Outcome(measurement.name, DONE, took, json.loads(text))


def _run(command: list[str], seconds: float) -> tuple[str, str]:
    """Run a command and say what became of it, and what it printed."""
    # A group of its own, so that processes which it started end with it.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except BaseException as error:
        _kill(process)
        if isinstance(error, subprocess.TimeoutExpired):
            return TOO_LONG, process.communicate()[0]
        raise
    if process.returncode == 0:
        return DONE, output
    return (NO_MEMORY if "out of memory" in output.lower() else FAILED), output


def _kill(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, AttributeError):  # it has ended, or the system has no groups
        process.kill()


def _read_log(log: Path, sweep: Sweep) -> dict[str, Outcome]:
    """Read what was measured before; begin the log if there is none."""
    settings = json.loads(json.dumps(asdict(sweep)))
    if not log.is_file():
        _append(log, {"sweep": settings})
        return {}
    # A line that a kill has cut short holds nothing that is needed.
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
    known = lines[0].get("sweep") if lines else None
    if known != settings:
        raise DataError(
            f"{log} is of another sweep ({known}): give the same options, or another folder"
        )
    return {line["name"]: Outcome(**line) for line in lines[1:]}


def _append(log: Path, line: Mapping[str, Any]) -> None:
    cut = log.is_file() and not log.read_text().endswith("\n")
    with log.open("a") as file:
        file.write(("\n" if cut else "") + json.dumps(line) + "\n")
