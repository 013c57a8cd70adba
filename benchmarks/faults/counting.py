"""Counts what a test tries, and what came of the tests: a plugin of pytest, off by default.

Tests call `tried`; `python -m benchmarks.faults run` loads this module as a plugin and reads the
counts from the file that `ELIP_FAULTS_OUT` names.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

OUT = "ELIP_FAULTS_OUT"
"""Environment variable: the file that the counts are written to."""

LONG = "ELIP_FAULTS"
"""Environment variable: with "all", the tests try as much as research/faults.md says, not a part;
with "first", a part, and only whether it fails."""

_tried: Counter[str] = Counter()
_outcomes: Counter[str] = Counter()
_measured: dict[str, Any] = {}


def is_long() -> bool:
    """Return whether all is to be tried, and not the part that is in `make test`."""
    return os.environ.get(LONG) == "all"


def tried(kind: str, number: int = 1) -> None:
    """Count faults or inputs that were tried and did no harm.

    Args:
        kind: What they are, in a few words; a row of the page.
        number: How many.
    """
    _tried[kind] += number


def measured(name: str, value: Any) -> None:
    """Keep a measured value for the page.

    Args:
        name: Its name.
        value: What JSON can hold.
    """
    _measured[name] = value


def pytest_runtest_logreport(report: Any) -> None:
    """Count tests by their outcome."""
    if report.when == "call" or report.outcome != "passed":
        _outcomes[report.outcome] += 1


def pytest_sessionfinish() -> None:
    """Write the counts."""
    if OUT in os.environ:
        found = {"tests": dict(_outcomes), "tried": dict(_tried), "measured": _measured}
        Path(os.environ[OUT]).write_text(json.dumps(found))
