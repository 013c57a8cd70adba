"""Files that are there whole or not at all, whenever a process is stopped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from elip_plugin.errors import DataError

UNFINISHED = ".unfinished"
"""How the names of files end that a process was killed at; nothing reads them."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name to write to, and put the file in its place when it is whole."""
    if path.exists() and not path.is_file():  # a device or a pipe, which cannot be replaced
        yield path
        return
    path = Path(os.path.realpath(path))  # a link stays one
    unfinished = path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Write a file of text in UTF-8; raise a `DataError` if it cannot be written."""
    with writable(path), replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", errors=errors)


def make_folder(path: Path) -> None:
    """Make a folder and its parents; raise a `DataError` if it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{path} is no folder that can be made ({error.strerror or error}): name another"
        ) from error


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Raise a `DataError` in place of the system's error where a file cannot be written."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror or error}): free space, or name a place "
            "that you can write to"
        ) from error
