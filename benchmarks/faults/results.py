"""Result files of the battery, which research/faults.md is written from."""

from __future__ import annotations

import json
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
FAULTS = RESULTS / "faults.json"
MUTANTS = RESULTS / "mutants.jsonl"
EXPLAINED = RESULTS / "mutants-explained.json"

LIBRARIES = ("torch", "open_clip_torch", "timm", "transformers", "hypothesis")


def environment() -> dict[str, str]:
    """Return the device, the date and the versions that a result holds for."""
    found = {"device": _processor(), "date": time.strftime("%Y-%m-%d")}
    found["python"] = platform.python_version()
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def read_faults() -> dict[str, Any]:
    """Read the counts by family; none before the first run."""
    found: dict[str, Any] = json.loads(FAULTS.read_text()) if FAULTS.exists() else {}
    return found


def write_faults(found: dict[str, Any]) -> None:
    """Write the counts by family."""
    FAULTS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a log; none if it is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
