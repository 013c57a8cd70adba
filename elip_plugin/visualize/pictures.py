"""Read the pictures to draw: files, folders, webdataset shards."""

from __future__ import annotations

import io
import json
import math
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from elip_plugin.errors import DataError, shown

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels."""


@dataclass(frozen=True)
class Picture:
    """A picture (Pillow), its file's name, and what came with it."""

    name: str
    image: Any
    caption: str | None = None
    boxes: Mapping[str, Box] = field(default_factory=dict)  # what objects cover, by their names


def find_pictures(paths: Iterable[Path], most: int) -> list[Picture]:
    """Read pictures."""
    found = list(islice((picture for path in paths for picture in _under(path)), most))
    if not found:
        raise DataError("no picture was found: give image files, folders of them, or .tar shards")
    return found


def _under(path: Path) -> Iterator[Picture]:
    if not path.exists():
        raise DataError(
            f"{path} does not exist: give an image, a folder of images, or a .tar shard"
        )
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not files:
            raise DataError(f"{path} holds no image; those that end in {', '.join(SUFFIXES)} count")
        for file in files:
            yield _from_file(file)
    elif path.suffix == ".tar":
        try:
            with tarfile.open(path, "r:") as shard:  # compressed, it may become any size
                yield from _in_shard(shard)
        except tarfile.TarError as error:
            raise DataError(f"{path} is not a webdataset shard ({error})") from error
    else:
        yield _from_file(path)


def _from_file(path: Path) -> Picture:
    text, more = path.with_suffix(".txt"), path.with_suffix(".json")
    beside = [file.read_bytes() if file.is_file() else b"" for file in (text, more)]
    return _read(path.name, path.read_bytes(), *beside)


def _in_shard(shard: tarfile.TarFile) -> Iterator[Picture]:
    members = {member.name: member for member in shard.getmembers() if member.isfile()}

    def content(name: str) -> bytes:
        file = shard.extractfile(members[name]) if name in members else None
        return b"" if file is None else file.read()

    for name in members:
        stem, dot, suffix = name.rpartition(".")
        if dot + suffix.lower() in SUFFIXES:
            yield _read(name, content(name), content(f"{stem}.txt"), content(f"{stem}.json"))


def _read(name: str, raw: bytes, text: bytes, more: bytes) -> Picture:
    """Read a picture, and what the text and the JSON beside it say; each of them may be empty."""
    from PIL import Image

    caption, boxes = _read_more(name, more)
    try:
        with Image.open(io.BytesIO(raw)) as image:
            return Picture(name, image.convert("RGB"), text.decode().strip() or caption, boxes)
    except Exception as error:  # Pillow's readers raise nearly anything on broken files
        raise DataError(f"{name} cannot be read as an image ({error})") from error


def _read_more(name: str, raw: bytes) -> tuple[str | None, dict[str, Box]]:
    """Read caption and boxes from the JSON beside a picture; it may be about other things."""
    try:
        values = json.loads(raw) if raw else {}
    except (ValueError, RecursionError) as error:
        raise DataError(f"the JSON beside {name} cannot be read ({error})") from error
    if not isinstance(values, dict):
        return None, {}
    caption, given = values.get("caption"), values.get("boxes", {})
    if not (isinstance(given, dict) and all(map(_is_box, given.values()))):
        raise DataError(
            f'boxes beside {name} must be {{"name": [left, top, right, bottom], ...}} in pixels, '
            f"got {shown(given)}"
        )
    boxes = {of: tuple(box) for of, box in given.items()}
    return caption if isinstance(caption, str) else None, boxes


def _is_box(box: Any) -> bool:
    numbers = isinstance(box, list) and all(
        isinstance(v, (int, float)) and abs(v) < math.inf for v in box
    )
    return numbers and len(box) == 4 and box[0] < box[2] and box[1] < box[3]
