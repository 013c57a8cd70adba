"""JSON lists of image-text pairs, as LAVIS reads them: `[{"image": ..., "caption": ...}, ...]`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from elip_plugin.errors import DataError

FULL = "full"
_MISSING = "missing"
_READERS = 16  # threads, as most of the time goes into waiting for the disk


def read_list(path: Path) -> list[Any]:
    """Read a JSON list, whose entries are not checked; raise a `DataError` if there is none."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error})") from error
    if not isinstance(rows, list):
        raise DataError(f"{path} holds {type(rows).__name__}, but a list of pairs is needed")
    if not rows:
        raise DataError(f"{path} holds an empty list")
    return rows


def list_faults(path: Path, root: Path, *, several: bool, images: bool | str) -> list[str]:
    """Check a list of pairs, and its images."""
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
    if images:
        paths = sorted({name for name in names if isinstance(name, str) and name})
        faults += _image_faults(path, root, paths, whole=images == FULL)
    return faults


def captions_in(path: Path) -> list[str]:
    """Read all captions of a list; raise a `DataError` if an entry has none."""
    found = [_captions(row, several=True) for row in read_list(path)]
    bad = [i for i, captions in enumerate(found) if not captions]
    if bad:
        count = f"{len(bad)} of {len(found)}"
        raise DataError(f'{path}: {count} entries have no "caption": {some(bad)}')
    return [caption for captions in found for caption in captions]


@contextmanager
def strict_decoding() -> Iterator[None]:
    """Make Pillow refuse broken images, which LAVIS has it fill with grey without a word."""
    from PIL import ImageFile

    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def decode_fault(path: str | Path, *, whole: bool = True) -> str | None:
    """Return what is wrong with an image, or with its header alone; None if nothing is."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if whole:
                image.convert("RGB")
    except FileNotFoundError:
        return _MISSING
    except Exception as error:  # Pillow's readers raise nearly anything on broken files
        return f"{type(error).__name__}: {error}"
    return None


def some(names: list[Any]) -> str:
    """Return the first three names and the number of others, such as "a, b, c and 4 more"."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(str, names[:3])) + more


def _captions(row: Any, several: bool) -> list[str]:
    """Return an entry's captions; none if it has no valid ones."""
    given = row.get("caption") if isinstance(row, dict) else None
    if isinstance(given, str):
        return [given]
    valid = several and isinstance(given, list) and all(isinstance(text, str) for text in given)
    return list(given) if valid and given else []


def _image_faults(path: Path, root: Path, names: list[str], *, whole: bool) -> list[str]:
    with strict_decoding(), ThreadPoolExecutor(_READERS) as readers:
        found = list(readers.map(lambda name: decode_fault(root / name, whole=whole), names))
    missing = [name for name, fault in zip(names, found) if fault == _MISSING]
    broken = [name for name, fault in zip(names, found) if fault not in (None, _MISSING)]
    return [
        f"{path}: {len(bad)} of {len(names)} images in {root} {what}: {some(bad)}"
        for bad, what in ((missing, "are missing"), (broken, "cannot be read by Pillow"))
        if bad
    ]
