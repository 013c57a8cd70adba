"""Read the pictures to draw: files, folders, webdataset shards."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from elip_plugin.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Picture:
    """A picture, and its caption if it came with one."""

    name: str
    image: Any
    caption: str | None = None


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
            text = file.with_suffix(".txt")
            caption = text.read_text(encoding="utf-8").strip() if text.is_file() else None
            yield _read(file.name, file.read_bytes(), caption)
    elif path.suffix == ".tar":
        try:
            with tarfile.open(path) as shard:
                yield from _in_shard(shard)
        except tarfile.TarError as error:
            raise DataError(f"{path} is not a webdataset shard ({error})") from error
    else:
        yield _read(path.name, path.read_bytes(), None)


def _in_shard(shard: tarfile.TarFile) -> Iterator[Picture]:
    members = {member.name: member for member in shard.getmembers() if member.isfile()}

    def content(name: str) -> bytes:
        file = shard.extractfile(members[name])
        assert file is not None  # only files were listed
        return file.read()

    for name in members:
        stem, dot, suffix = name.rpartition(".")
        if dot + suffix.lower() not in SUFFIXES:
            continue
        caption = None
        if f"{stem}.txt" in members:
            caption = content(f"{stem}.txt").decode().strip()
        elif f"{stem}.json" in members:
            values = json.loads(content(f"{stem}.json"))
            given = values.get("caption") if isinstance(values, dict) else None
            caption = given if isinstance(given, str) else None
        yield _read(name, content(name), caption)


def _read(name: str, raw: bytes, caption: str | None) -> Picture:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(raw)) as image:
            return Picture(name, image.convert("RGB"), caption)
    except Exception as error:  # Pillow's readers raise nearly anything on broken files
        raise DataError(f"{name} cannot be read as an image ({error})") from error
