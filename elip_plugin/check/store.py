"""Rows of numbers by key on the disk: one file of rows, and one of the keys of those that are done.

A row counts once its key is written, and keys are written after their rows. What a stop leaves of
a batch is cut off by the next run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elip_plugin.errors import DataError
from elip_plugin.files import make_folder, writable, write_text

Rows = NDArray[np.float32]

Add = Callable[[Sequence[str], Rows], None]
"""Adds rows [n, E] by their keys, of `KEY` characters; all rows of a store have one width."""

KEY = 32
"""Characters of a key."""


class Store:
    """A folder of rows, each of which is computed once.

    Args:
        folder: The folder; made when something is stored.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows, self._keys = folder / "rows.f4", folder / "done.keys"

    def places(self, keys: Sequence[str]) -> NDArray[np.intp]:
        """Find rows.

        Args:
            keys: What is wanted.

        Returns:
            The row of each [n]; -1 for what is not there.
        """
        known, wanted = self._known(), np.array(keys, f"S{KEY}")
        if not len(known) or not len(wanted):
            return np.full(len(wanted), -1, np.intp)
        if len(known) >= len(wanted) and (known[: len(wanted)] == wanted).all():
            return np.arange(len(wanted))  # as they were written
        order = np.argsort(known, kind="stable")
        rows = order[np.minimum(np.searchsorted(known, wanted, sorter=order), len(known) - 1)]
        return np.where(known[rows] == wanted, rows, -1)

    def rows(self, keys: Sequence[str]) -> Rows:
        """Return rows that are there.

        Args:
            keys: What is wanted.

        Returns:
            The rows [n, E] in the order of the keys; memory-mapped where they were written so.

        Raises:
            DataError: If one is missing.
        """
        places = self.places(keys)
        if not len(places):
            return np.zeros((0, 0), np.float32)
        if (places < 0).any():
            raise DataError(f"{self.folder} was changed while it was in use: run again")
        mapped = self._mapped()
        in_order = (places == np.arange(len(places))).all()
        return mapped[: len(places)] if in_order else mapped[places]

    @contextmanager
    def adding(self) -> Iterator[Add]:
        """Open the store to add rows.

        Yields:
            What adds rows; they are kept whatever happens to the process afterwards. DataError if
            another process adds to the store, or it is damaged.
        """
        with ExitStack() as stack:
            make_folder(self.folder)
            with writable(self.folder):
                _lock(stack.enter_context((self.folder / "lock").open("w")), self.folder)
                whole, width = len(self._known()), self._width()
                rows_file, keys_file = (
                    stack.enter_context(path.open("ab", buffering=0))
                    for path in (self._rows, self._keys)
                )
                # What a stop has left of a batch.
                os.truncate(self._rows, whole * 4 * width)
                os.truncate(self._keys, whole * KEY)

            def add(keys: Sequence[str], rows: Rows) -> None:
                stored, width = self._width(), rows.shape[1]
                if not stored:
                    write_text(self.folder / "store.json", json.dumps({"width": width}))
                elif stored != width:
                    raise DataError(
                        f"{self.folder} has rows of {stored} numbers, and not {width}: remove the "
                        "folder"
                    )
                with writable(self.folder):  # the keys last, without which the rows do not count
                    _write(rows_file, np.ascontiguousarray(rows, "<f4").tobytes())
                    _write(keys_file, np.array(keys, f"S{KEY}").tobytes())

            yield add

    def _known(self) -> NDArray[Any]:
        """Return the keys of the rows that are whole, in the order of the rows."""
        width = self._width()
        if not width:
            return np.zeros(0, f"S{KEY}")
        keys = np.fromfile(self._keys, f"S{KEY}") if self._keys.exists() else np.zeros(0, f"S{KEY}")
        size = self._rows.stat().st_size if self._rows.exists() else 0
        return keys[: size // (4 * width)]

    def _width(self) -> int:
        """Return the numbers of a row; 0 if nothing was stored yet."""
        path = self.folder / "store.json"
        if not path.exists():
            return 0
        try:
            width = json.loads(path.read_text(encoding="utf-8"))["width"]
            if type(width) is not int or width < 1:
                raise ValueError(f"rows of {width!r} numbers")
        except Exception as error:  # of the file system, JSON, and other kinds of values
            raise DataError(
                f"{path} is damaged ({error}): remove {self.folder}, and what is in it is computed "
                "again"
            ) from error
        return width

    def _mapped(self) -> Rows:
        width = self._width()
        count = self._rows.stat().st_size // (4 * width)
        return np.memmap(self._rows, "<f4", "r", shape=(count, width))


def _write(file: Any, content: bytes) -> None:
    left = memoryview(content)
    while left:  # a disk that is nearly full takes a part
        left = left[file.write(left) :]


def _lock(file: Any, folder: Path) -> None:
    """Refuse a second process, until the first ends or is killed."""
    with suppress(ImportError):  # where a system has none
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"another process adds to {folder}: wait until it ends, or name another --out"
            ) from error
