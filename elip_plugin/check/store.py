"""Rows of numbers by key on the disk: a file of records, each of which is a key and its row.

What a stop leaves of a record is cut off by the next run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elip_plugin.errors import DataError
from elip_plugin.files import make_folder, writable

Rows = NDArray[np.float32]

Add = Callable[[Sequence[str], Rows], None]
"""Adds rows [n, E] by their keys, of `KEY` characters; all rows of a store have one width."""

KEY = 32
"""Characters of a key."""

SUFFIX = ".rows"
"""How the name of the file of records ends, after the numbers of a row."""


class Store:
    """A folder of rows, each of which is computed once.

    Args:
        folder: The folder; made when something is stored.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def places(self, keys: Sequence[str]) -> NDArray[np.intp]:
        """Find rows.

        Args:
            keys: What is wanted.

        Returns:
            The row of each [n]; -1 for what is not there.
        """
        known, wanted = self._records()["key"], np.array(keys, f"S{KEY}")
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
        stored: Rows = self._records()["row"]
        in_order = (places == np.arange(len(places))).all()
        return stored[: len(places)] if in_order else stored[places]

    @contextmanager
    def adding(self) -> Iterator[Add]:
        """Open the store to add rows.

        Yields:
            What adds rows; they are kept whatever happens to the process afterwards. DataError if
            another process adds to the store.
        """
        make_folder(self.folder)
        with writable(self.folder):
            lock = (self.folder / "lock").open("w")
        with lock:
            _lock(lock, self.folder)
            yield self._add

    def _add(self, keys: Sequence[str], rows: Rows) -> None:
        width = rows.shape[1]
        records = np.empty(len(keys), _kind(width))
        records["key"], records["row"] = keys, rows
        path = self.folder / f"{width}{SUFFIX}"
        with writable(self.folder), path.open("ab") as file:
            file.truncate(file.tell() // records.itemsize * records.itemsize)
            file.write(records.tobytes())

    def _records(self) -> NDArray[Any]:
        """Map the records that are whole."""
        for path in self.folder.glob(f"*{SUFFIX}"):
            kind = _kind(int(path.stem))
            if count := path.stat().st_size // kind.itemsize:
                return np.memmap(path, kind, "r", shape=(count,))
        return np.zeros(0, _kind(0))


def _kind(width: int) -> np.dtype[Any]:
    return np.dtype([("key", f"S{KEY}"), ("row", "<f4", (width,))])


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
