"""Put a finished data set in place, replacing only the files an earlier run wrote."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from elip_plugin.data.pairs import some
from elip_plugin.data.shards import write_json
from elip_plugin.errors import DataError

MANIFEST = "openmoji.json"
_WRITER = "elip data openmoji"
# A manifest is a file anyone can edit: only names of this form are ever replaced or removed.
_OURS = re.compile(
    r"(train|held_out)/\d{5}\.tar|images/[0-9A-F-]+\.png|(train|held_out)\.json"
    r"|(ATTRIBUTION|vocab)\.txt"
)


def write_manifest(folder: Path, settings: dict[str, Any]) -> None:
    """Write the list of our own files, by which a later run knows what it may replace.

    Args:
        folder: Root folder of the data set, all other files written.
        settings: What the data set was made with.
    """
    _save_manifest(folder, _files(folder), complete=True, settings=settings)


def check_target(out: Path, overwrite: bool) -> None:
    """Refuse an output folder that holds files, unless the caller asked to overwrite.

    Args:
        out: The output folder.
        overwrite: Whether files of an earlier run may be replaced.

    Raises:
        DataError: If `out` is not a folder, or holds files and `overwrite` is false.
    """
    if not out.is_dir():
        if out.exists():
            raise DataError(f"{out} is a file, but a folder is needed: name another path.")
        return
    found = sorted(path.name for path in out.iterdir())
    if found and not overwrite:
        raise DataError(
            f"{out} is not empty (it holds {some(found)}): name a new or empty folder, or pass "
            "--overwrite (overwrite=True), which replaces only the files an earlier run wrote."
        )


def publish(staged: Path, target: Path) -> None:
    """Move a finished data set into place, replacing only files an earlier run wrote.

    A run cut off in the middle leaves a manifest that says `"complete": false` and no list of a
    split that is not whole; the next run with overwrite mends it.

    Args:
        staged: Folder with the finished data set, on the same file system as `target`.
        target: Where it goes; need not exist.

    Raises:
        DataError: If a file we did not write is in the way; nothing was changed then.
    """
    if not target.exists():
        staged.rename(target)
        return
    new, old = _files(staged), _owned(target)
    foreign = [f for f in [*new, MANIFEST] if os.path.lexists(target / f) and f not in old]
    if foreign:
        raise DataError(
            f"{target} holds files that `elip data openmoji` did not write but would replace "
            f"({some(foreign)}); nothing was changed: move them away or name another folder."
        )
    for name in new:
        (target / name).parent.mkdir(exist_ok=True)
    _save_manifest(target, sorted({*new, *old} - {MANIFEST}), complete=False, settings={})
    # All old files go first: a mix of two splits would leak held-out pairs into training.
    for name in old - {MANIFEST}:
        (target / name).unlink(missing_ok=True)
    for name in [*sorted(new, key=lambda n: n.endswith(".json")), MANIFEST]:
        (staged / name).replace(target / name)


def _files(folder: Path) -> list[str]:
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    return sorted(found - {MANIFEST})


def _save_manifest(
    folder: Path, files: list[str], *, complete: bool, settings: dict[str, Any]
) -> None:
    part = folder / f"{MANIFEST}.part"
    write_json(part, {"writer": _WRITER, "complete": complete, **settings, "files": files})
    part.replace(folder / MANIFEST)


def _owned(target: Path) -> set[str]:
    """The files an earlier run wrote to `target`; empty without a manifest of ours."""
    try:
        manifest = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
        if manifest["writer"] != _WRITER:
            return set()
        return {MANIFEST, *(name for name in manifest["files"] if _OURS.fullmatch(name))}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return set()
