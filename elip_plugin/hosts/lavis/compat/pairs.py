"""JSON lists of image-text pairs, as LAVIS reads them: `[{"image": ..., "caption": ...}, ...]`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from elip_plugin.errors import DataError, some


def read_list(path: Path) -> list[Any]:
    """Read a JSON list, whose entries are not checked; raise a `DataError` if there is none."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error})") from error
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path} holds no list of pairs, such as [{{image: ..., caption: ...}}]")
    return rows


def list_faults(path: Path, root: Path, *, several: bool) -> list[str]:
    """Check a list of pairs, and whether its images are there."""
    try:
        rows = read_list(path)
    except DataError as error:
        return [str(error)]
    names = [row.get("image") if isinstance(row, dict) else None for row in rows]
    unnamed = [i for i, name in enumerate(names) if not (isinstance(name, str) and name)]
    untitled = [i for i, row in enumerate(rows) if not _captions(row, several)]
    wanted = '"caption" (a string or a list of strings)' if several else '"caption" (a string)'
    faults = [
        f"{path}: {len(bad)} of {len(rows)} entries have no {key}: {some(bad)}"
        for bad, key in ((unnamed, '"image" (a path)'), (untitled, wanted))
        if bad
    ]
    paths = sorted({name for name in names if isinstance(name, str) and name})
    missing = [name for name in paths if not (root / name).is_file()]
    if missing:
        count = f"{len(missing)} of {len(paths)}"
        faults.append(f"{path}: {count} images in {root} are missing: {some(missing)}")
    return faults


def _captions(row: Any, several: bool) -> list[str]:
    """Return an entry's captions; none if it has no valid ones."""
    given = row.get("caption") if isinstance(row, dict) else None
    if isinstance(given, str):
        return [given]
    valid = several and isinstance(given, list) and all(isinstance(text, str) for text in given)
    return list(given) if valid and given else []
