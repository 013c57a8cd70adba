"""Families of faults: what is tried, and by which tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults.counting import LONG, OUT
from benchmarks.faults.results import ROOT, environment


@dataclass(frozen=True)
class Family:
    """Faults of a kind.

    Attributes:
        name: Its name.
        lost: What would be lost if one did harm.
        tests: Tests of `tests/faults`, of which all run.
        laws: Tests of other folders that hold for the same faults; without those marked slow.
    """

    name: str
    lost: str
    tests: tuple[str, ...] = ()
    laws: tuple[str, ...] = ()


FAMILIES = (
    Family(
        "hostile input",
        "a traceback in place of an error, a hang, full memory, code run from a file",
        ("test_configs.py", "test_files.py", "test_calls.py"),
        ("test_config.py", "test_config_bugs.py", "cli/test_errors.py"),
    ),
    Family(
        "exceptions inside",
        "a next forward or gradient that differs in a bit, a model that cannot be restored",
        ("test_exceptions.py",),
        ("test_threads.py",),
    ),
    Family(
        "numbers",
        "a choice that depends on another picture, on precision, or on the place in the batch",
        ("test_numerics.py",),
        ("core", "reducers"),
    ),
    Family(
        "other people's code",
        "a wrapper, copy or quantized model that is pruned wrongly or cannot be restored; memory",
        ("test_lifetimes.py",),
        ("hosts/test_wrappers.py", "hosts/transformers/test_transformers_peft.py"),
    ),
    Family(
        "adapters",
        "a LoRA, DoRA, rsLoRA or IA3 that a pruned forward ignores or does not train; int8",
        (),
        ("hosts/test_adapters.py", "hosts/test_int8.py"),
    ),
    Family(
        "heads and backbones",
        "maps of too few tokens, an average that counts a group like a patch",
        (),
        ("hosts/anyvit/test_consumers.py", "hosts/test_restored.py"),
    ),
    Family(
        "stops and full disks",
        "a half-written file taken for whole, a traceback, a file lost",
        ("test_stops.py", "test_kills.py"),
        ("check/test_store.py", "patching/test_checkpoints.py"),
    ),
    Family(
        "many processes",
        "a loss or gradient that is not that of one process, a deadlock",
        ("test_processes.py",),
        ("hosts/transformers/test_transformers_gloo.py", "patching/test_training_progress.py"),
    ),
    Family(
        "the start-up file",
        "an unrelated Python process that fails or prints",
        (),
        ("hosts/test_autoload.py", "hosts/test_start_up.py"),
    ),
    Family(
        "kept answers",
        "features or gradients that differ from those of an earlier version",
        (),
        ("test_kept.py", "test_golden.py"),
    ),
)


def run_family(family: Family) -> dict[str, Any]:
    """Run all tests of a family.

    Args:
        family: The family.

    Returns:
        Counts of tests by their outcome, of what was tried, what was measured, seconds, and the
        environment.
    """
    began, parts = time.monotonic(), []
    for folder, names, options in (
        ("tests/faults", family.tests, ["-m", "slow or not slow"]),
        ("tests", family.laws, ["-m", "not slow"]),
    ):
        files = [f"{folder}/{name}" for name in names if (ROOT / folder / name).exists()]
        if files:
            parts.append(_run_pytest([*options, *files]))
    return {
        "tests": _sum(part["tests"] for part in parts),
        "tried": _sum(part["tried"] for part in parts),
        "measured": {name: value for part in parts for name, value in part["measured"].items()},
        "seconds": round(time.monotonic() - began),
        "environment": environment(),
    }


def _run_pytest(options: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "counts.json"
        command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]
        subprocess.run(
            [*command, "-p", "benchmarks.faults.counting", *options],
            cwd=ROOT,
            env={**os.environ, LONG: "all", OUT: str(out)},
        )
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def _sum(counts: Any) -> dict[str, int]:
    total: dict[str, int] = {}
    for each in counts:
        for name, number in each.items():
            total[name] = total.get(name, 0) + number
    return total
