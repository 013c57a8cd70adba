"""The pictures to look at: files, folders, webdataset shards."""

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
TEXTS = (".txt", ".json")


@dataclass(frozen=True)
class Picture:
    """A picture, and its caption if it came with one."""

    name: str
    image: Any
    caption: str | None = None


def find_pictures(paths: Iterable[Path], most: int) -> list[Picture]:
    """Read pictures.

    Args:
        paths: Image files, folders of them, or webdataset shards (.tar).
        most: Most pictures to read.

    Returns:
        The pictures, in the order of the paths, then of their names.

    Raises:
        DataError: If a path holds no picture, or one cannot be read.
    """
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
        yield from _in_shard(path)
    else:
        yield _read(path.name, path.read_bytes(), None)


def _in_shard(path: Path) -> Iterator[Picture]:
    try:
        with tarfile.open(path) as shard:
            members = {m.name: m for m in shard.getmembers() if m.isfile()}
            for name, member in members.items():
                stem, dot, suffix = name.rpartition(".")
                if dot + suffix.lower() not in SUFFIXES:
                    continue
                texts = [stem + ending for ending in TEXTS if stem + ending in members]
                raw = [_bytes(shard, members[text]).decode() for text in texts]
                yield _read(
                    name, _bytes(shard, member), _caption(texts[0], raw[0]) if raw else None
                )
    except tarfile.TarError as error:
        raise DataError(f"{path} is not a webdataset shard ({error})") from error


def _bytes(shard: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = shard.extractfile(member)
    assert file is not None  # only files were listed
    return file.read()


def _caption(name: str, raw: str) -> str | None:
    if name.endswith(".txt"):
        return raw.strip()
    values = json.loads(raw)
    caption = values.get("caption") if isinstance(values, dict) else None
    return caption if isinstance(caption, str) else None


def _read(name: str, raw: bytes, caption: str | None) -> Picture:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(raw)) as image:
            return Picture(name, image.convert("RGB"), caption)
    except Exception as error:  # Pillow's readers raise nearly anything on broken files
        raise DataError(f"{name} cannot be read as an image ({error})") from error
