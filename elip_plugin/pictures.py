"""The pictures of folders and webdataset shards, and the texts beside them."""

from __future__ import annotations

import hashlib
import io
import tarfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elip_plugin.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

PAUSES = (0.1, 0.5, 0.0)
"""Seconds between the tries to read a picture; 0 ends them."""


@dataclass(frozen=True)
class Item:
    """A picture that has not been read yet.

    Attributes:
        name: Its path below what was given, with `/`; in a shard, the shard's name comes first.
        path: The file that holds it: itself, or a shard.
        size: Bytes of the picture.
        modified: When `path` was last changed, in nanoseconds.
        offset: Where it begins in `path`.
        caption: The text that lies beside it, if any.
    """

    name: str
    path: Path
    size: int
    modified: int
    offset: int = 0
    caption: str | None = None

    @property
    def group(self) -> str:
        """The folder, or the shard, that it lies in."""
        return self.name.rpartition("/")[0]

    @property
    def key(self) -> str:
        """What changes when the picture does: a hash of path, place, size and time."""
        state = (str(self.path.resolve()), self.offset, self.size, self.modified)
        return hashlib.sha256(repr(state).encode()).hexdigest()[:32]

    def read(self) -> Any:
        """Read the picture (Pillow, RGB); raises whatever Pillow does on a broken one."""
        from PIL import Image, UnidentifiedImageError

        raw = _part(self.path, self.offset, self.size)
        try:
            with Image.open(io.BytesIO(raw)) as image:
                return image.convert("RGB")
        except UnidentifiedImageError:  # whose words are about the bytes in memory
            raise DataError("it is no picture of a kind that Pillow reads") from None


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


def find_items(paths: Sequence[Path]) -> list[Item]:
    """List pictures, in the order of their names; each file once.

    Args:
        paths: Pictures, folders of pictures or shards at any depth, or `.tar` shards.

    Returns:
        The pictures.

    Raises:
        DataError: If a path does not exist, a shard cannot be read, or there is no picture.
    """
    found: dict[tuple[Path, int], Item] = {}
    for path in paths:
        if not path.exists():
            raise DataError(f"{path} does not exist: give a folder of pictures, or .tar shards")
        for item in _under(path):
            found.setdefault((item.path.resolve(), item.offset), item)
    if not found:
        raise DataError(
            f"no picture is in {', '.join(map(str, paths))}: files that end in "
            f"{', '.join(SUFFIXES)} count, in folders of any depth and in .tar shards"
        )
    return sorted(found.values(), key=lambda item: item.name)


def _under(path: Path) -> Iterator[Item]:
    if not path.is_dir():
        yield from _in_file(path, path.name)
        return
    for file in path.rglob("*"):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if file.is_file() and not hidden:
            yield from _in_file(file, file.relative_to(path).as_posix())


def _in_file(path: Path, name: str) -> Iterable[Item]:
    if path.suffix == ".tar":
        return _in_shard(path, name)
    if path.suffix.lower() not in SUFFIXES:
        return ()
    state = path.stat()
    text = path.with_suffix(".txt")
    caption = _caption(text.read_bytes(), str(text)) if text.is_file() else None
    return (Item(name, path, state.st_size, state.st_mtime_ns, 0, caption),)


def _in_shard(path: Path, name: str) -> Iterator[Item]:
    modified = path.stat().st_mtime_ns
    try:
        with tarfile.open(path, "r:") as shard:
            members = {member.name: member for member in shard if member.isfile()}
            for member in members.values():
                stem, dot, suffix = member.name.rpartition(".")
                if dot + suffix.lower() not in SUFFIXES:
                    continue
                text = members.get(f"{stem}.txt")
                file = None if text is None else shard.extractfile(text)
                caption = None if file is None else _caption(file.read(), f"{path}: {stem}.txt")
                inner = f"{name}/{member.name.removeprefix('./')}"
                yield Item(inner, path, member.size, modified, member.offset_data, caption)
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path} is not a webdataset shard ({error})") from error


def _caption(raw: bytes, name: str) -> str | None:
    try:
        return raw.decode().strip() or None
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8 text ({error})") from error


def _part(path: Path, offset: int, size: int) -> bytes:
    """Read a part of a file; what a disk or a network refuses is tried again."""
    for pause in PAUSES:
        try:
            with path.open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except (FileNotFoundError, PermissionError):
            raise
        except OSError:
            if not pause:
                raise
            time.sleep(pause)
    raise AssertionError


def read_picture(item: Item) -> Any:
    """Read a picture as `Item.read` does; raises a DataError that names it if it is broken."""
    try:
        return item.read()
    except Exception as error:  # Pillow's readers raise nearly anything on broken files
        raise DataError(f"{item.name} cannot be read as an image ({error})") from error
