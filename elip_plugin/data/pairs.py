"""JSON lists of image-text pairs, as LAVIS reads them: `[{"image": ..., "caption": ...}, ...]`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from elip_plugin.errors import DataError

FULL = "full"
_MISSING = "missing"
_READERS = 16  # threads, as most of the time goes into waiting for the disk


def read_list(path: Path) -> list[Any]:
    """Read a JSON list; its entries are not checked.

    Args:
        path: The file.

    Returns:
        The entries.

    Raises:
        DataError: If the file is missing, not JSON, not a list, or empty.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error})") from error
    if not isinstance(rows, list):
        raise DataError(f"{path} holds {type(rows).__name__}, but a list of pairs is needed")
    if not rows:
        raise DataError(f"{path} holds an empty list")
    return rows


def list_faults(path: Path, root: Path, *, several: bool, images: bool | str) -> list[str]:
    """Name what is wrong with a list of pairs, and with its images.

    Args:
        path: The list.
        root: Folder that the image paths are relative to.
        several: Whether a caption may be a list of captions.
        images: Whether to open the header of each image; "full" decodes it whole.

    Returns:
        One sentence per kind of fault, with a count and the first places.
    """
    try:
        rows = read_list(path)
    except DataError as error:
        return [str(error)]
    names = [row.get("image") if isinstance(row, dict) else None for row in rows]
    texts = [row.get("caption") if isinstance(row, dict) else None for row in rows]
    no_name = [i for i, name in enumerate(names) if not (isinstance(name, str) and name)]
    no_text = [i for i, text in enumerate(texts) if not _is_caption(text, several)]
    wanted = '"caption" (a string or a list of strings)' if several else '"caption" (a string)'
    faults = []
    for bad, key in ((no_name, '"image" (a path)'), (no_text, wanted)):
        if bad:
            which = some([str(i) for i in bad])
            faults.append(f"{path}: {len(bad)} of {len(rows)} entries have no {key}: {which}")
    if images:
        fault = decode_fault if images == FULL else _header_fault
        faults += _image_faults(path, root, {n for n in names if isinstance(n, str) and n}, fault)
    return faults


def captions_in(path: Path) -> list[str]:
    """Read the captions of a list of pairs, whether an entry has one or several.

    Args:
        path: The list.

    Returns:
        All captions, in the order of the list.

    Raises:
        DataError: If the list cannot be read, or entries have no caption.
    """
    rows = read_list(path)
    texts = [row.get("caption") if isinstance(row, dict) else None for row in rows]
    bad = [str(i) for i, text in enumerate(texts) if not _is_caption(text, several=True)]
    if bad:
        raise DataError(f'{path}: {len(bad)} of {len(rows)} entries have no "caption": {some(bad)}')
    return [part for text in texts for part in ([text] if isinstance(text, str) else text or [])]


@contextmanager
def strict_decoding() -> Iterator[None]:
    """Make Pillow refuse broken images inside the context.

    LAVIS, once imported, makes it fill what is missing with grey, without a word.

    Yields:
        Nothing.
    """
    from PIL import ImageFile

    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def decode_fault(path: str | Path) -> str | None:
    """Decode an image and throw it away; see `strict_decoding`.

    Args:
        path: The image.

    Returns:
        "missing", or what Pillow says against it; None if it can be decoded.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.convert("RGB")
    except FileNotFoundError:
        return _MISSING
    except Exception as error:  # Pillow's readers raise nearly anything on broken files
        return f"{type(error).__name__}: {error}"
    return None


def some(names: list[str]) -> str:
    """Join the first three names and count the others.

    Args:
        names: What to name.

    Returns:
        Such as "a, b, c and 4 more".
    """
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _is_caption(text: Any, several: bool) -> bool:
    if several and isinstance(text, list):
        return bool(text) and all(isinstance(part, str) for part in text)
    return isinstance(text, str)


def _image_faults(
    path: Path, root: Path, names: Iterable[str], fault: Callable[[Path], str | None]
) -> list[str]:
    ordered = sorted(names)
    with strict_decoding(), ThreadPoolExecutor(_READERS) as readers:
        found = list(readers.map(lambda name: fault(root / name), ordered))
    missing = [name for name, said in zip(ordered, found) if said == _MISSING]
    broken = [name for name, said in zip(ordered, found) if said not in (None, _MISSING)]
    where = f"of {len(ordered)} images in {root}"
    return [
        f"{path}: {len(bad)} {where} {what}: {some(bad)}"
        for bad, what in ((missing, "are missing"), (broken, "cannot be read by Pillow"))
        if bad
    ]


def _header_fault(path: Path) -> str | None:
    from PIL import Image

    try:
        Image.open(path).close()
    except FileNotFoundError:
        return _MISSING
    except Exception as error:  # as above
        return str(error)
    return None
