"""Results as JSON lines: one line per training, appended when it is done."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from elip_plugin.errors import DataError

KEY = ("recipe", "variant", "definition", "seed")
"""What tells one training from another."""


def read(path: Path) -> list[dict[str, Any]]:
    """Read all results.

    Args:
        path: The file; it need not be there yet.

    Returns:
        One mapping per line.

    Raises:
        DataError: If a line is not JSON.
    """
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise DataError(
                f"{path}, line {number}: not a line of results ({error}); remove it, and the "
                "training it stood for runs again"
            ) from error
    return rows


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Add one result.

    Args:
        path: The file; made with its folder if it is not there.
        row: The result.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def key(row: Mapping[str, Any]) -> str:
    """Name a training.

    Args:
        row: A result, or a mapping with as much of it as `KEY` needs.

    Returns:
        Text that is equal for the same training only.
    """
    return json.dumps([row.get(name) for name in KEY], sort_keys=True)


def missing(wanted: Iterable[dict[str, Any]], done: Iterable[Mapping[str, Any]]) -> list[Any]:
    """Leave out what is done.

    Args:
        wanted: Trainings.
        done: Results.

    Returns:
        Those of the wanted that have no result.
    """
    known = {key(row) for row in done}
    return [row for row in wanted if key(row) not in known]
