"""The results log: one JSON line per training, appended when it is done."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

KEY = ("recipe", "variant", "definition", "budget", "seed")
"""What distinguishes one training from another."""


def read(path: Path) -> list[dict[str, Any]]:
    """Read all results.

    Args:
        path: The file; it need not exist yet.

    Returns:
        One mapping per line.

    Raises:
        ValueError: If a line is not JSON.
    """
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}: not a line of results ({error}); remove it, and the "
                "training it stood for runs again"
            ) from error
        rows.append(row)
    return rows


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Write one result.

    Args:
        path: The file; made with its folder if it is not there.
        row: The result.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def missing(
    wanted: Iterable[dict[str, Any]], done: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Find the trainings that have no result.

    Args:
        wanted: Trainings.
        done: Results.

    Returns:
        Those of the wanted that are to be run.
    """
    known = {_key(row) for row in done}
    return [row for row in wanted if _key(row) not in known]


def _key(row: Mapping[str, Any]) -> str:
    return json.dumps([row.get(name) for name in KEY], sort_keys=True)
