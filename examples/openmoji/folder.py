"""Write the files of a data set; only those of an earlier run are ever replaced."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elip_plugin.errors import DataError, shown
from elip_plugin.files import UNFINISHED, replacing

MANIFEST = "openmoji.json"
_WRITER = "examples.openmoji"
# A manifest is a file anyone can edit: only names of this form are ever replaced or removed.
_OURS = re.compile(
    r"(train|held_out)/\d{5}\.tar|images/[0-9A-F-]+\.png|(train|held_out)\.json"
    r"|test/(\d+\.tar|nshards\.txt)|(ATTRIBUTION|dataset_type|vocab)\.txt"
)


def check_folder(out: Path, overwrite: bool) -> None:
    """Raise a `DataError` if the folder holds files, unless they may be overwritten."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file, but a folder is needed: name another path.")
    found = sorted(path.name for path in out.iterdir()) if out.exists() else []
    if found and not overwrite:
        raise DataError(
            f"{out} is not empty (it holds {shown(found)}): name a new or empty folder, or pass "
            "--overwrite (overwrite=True), which replaces only the files an earlier run wrote."
        )


def write_files(out: Path, files: Mapping[str, bytes], settings: Mapping[str, Any]) -> None:
    """Write a data set, in this order, and the list of its files, in place of an earlier run's."""
    old = _written_before(out)
    foreign = [f for f in (*files, MANIFEST) if f not in old and os.path.lexists(out / f)]
    if foreign:
        raise DataError(
            f"{out} holds files that examples.openmoji did not write but would replace "
            f"({shown(foreign)}); nothing was changed: move them away or name another folder."
        )
    manifest = {"writer": _WRITER, **settings, "files": sorted(files)}
    try:
        for left in (path for path in out.rglob(f"*{UNFINISHED}") if _is_ours(path, out)):
            left.unlink()
        # All old files go first: a mix of two splits would leak held-out pairs into training.
        for name in old - {MANIFEST}:
            (out / name).unlink(missing_ok=True)
        first = {MANIFEST: (json.dumps(manifest, indent=1) + "\n").encode()}
        for name, content in {**first, **files}.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            with replacing(out / name) as unfinished:
                unfinished.write_bytes(content)
    except OSError as error:
        raise DataError(
            f"Could not write the data set to {out} ({error}): free space or name a folder that "
            "you can write to, then run it again, with --overwrite (overwrite=True)."
        ) from error


def _is_ours(path: Path, out: Path) -> bool:
    """Say whether a file is one that an earlier run was killed at."""
    name = path.relative_to(out).as_posix().removesuffix(UNFINISHED).rpartition(".")[0]
    return name == MANIFEST or bool(_OURS.fullmatch(name))


def _written_before(out: Path) -> set[str]:
    """Return the files that an earlier run wrote; none without a manifest of ours."""
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        if manifest["writer"] != _WRITER:
            return set()
        return {MANIFEST, *(name for name in manifest["files"] if _OURS.fullmatch(name))}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()
