"""Rows of numbers by key on the disk, in files that are finished or not there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elip_plugin.errors import DataError
from elip_plugin.files import replacing

Rows = NDArray[np.float32]

Compute = Callable[[Sequence[int]], tuple[Rows, dict[int, str]]]
"""Computes the rows of some places [n, E]; of what it cannot, it gives the reasons by place, and
leaves the rows out."""

PER_FILE = 64
"""Rows per file: what a stop costs at most."""


class Store:
    """A folder of rows, each of which is computed once.

    Args:
        folder: The folder; made when something is stored.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(
        self, keys: Sequence[str], compute: Compute, progress: Callable[[int], None]
    ) -> tuple[Rows, dict[int, str]]:
        """Compute the rows that are missing, and return all.

        Args:
            keys: What is wanted, each once.
            compute: Computes what is missing.
            progress: Called with the number of rows that are there, after each file.

        Returns:
            The rows [n, E] of all that has no fault, memory-mapped; and the faults, by place.

        Raises:
            DataError: If a file of the folder is damaged.
        """
        known, faults = self._read()
        missing = [i for i, key in enumerate(keys) if key not in known and key not in faults]
        progress(len(keys) - len(missing))
        for start in range(0, len(missing), PER_FILE):
            places = missing[start : start + PER_FILE]
            rows, bad = compute(places)
            good = [i for i in places if i not in bad]
            self._write(rows, [keys[i] for i in good], {keys[i]: why for i, why in bad.items()})
            progress(len(keys) - len(missing) + start + len(places))
        known, faults = self._read()
        there = [key for key in keys if key in known]
        return self._gather(there, known), {i: faults[k] for i, k in enumerate(keys) if k in faults}

    def _read(self) -> tuple[dict[str, tuple[Path, int]], dict[str, str]]:
        """Return where each row is, and what is wrong with what has none."""
        known: dict[str, tuple[Path, int]] = {}
        faults: dict[str, str] = {}
        for path in sorted(self.folder.glob("*.json")):
            try:
                made = json.loads(path.read_text(encoding="utf-8"))
                rows = path.with_suffix(".npy")
                known |= {key: (rows, row) for row, key in enumerate(made["keys"])}
                faults |= made["faults"]
            except Exception as error:  # of the file system, JSON, and other kinds of values
                raise _damaged(path, error) from error
        return known, faults

    def _write(self, rows: Rows, keys: Sequence[str], faults: dict[str, str]) -> None:
        name = hashlib.sha256("".join([*keys, *faults]).encode()).hexdigest()[:16]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if keys:
                with replacing(self.folder / f"{name}.npy") as path, path.open("wb") as file:
                    np.save(file, np.asarray(rows, np.float32))
            # The list comes last: without it the file of rows does not count.
            with replacing(self.folder / f"{name}.json") as path:
                path.write_text(json.dumps({"keys": list(keys), "faults": faults}), "utf-8")
        except OSError as error:
            raise self._unwritten(error) from error

    def _unwritten(self, error: OSError) -> DataError:
        return DataError(f"{self.folder} cannot be written to ({error}): free space, and run again")

    def _gather(self, keys: Sequence[str], known: dict[str, tuple[Path, int]]) -> Rows:
        """Write the rows into one file, in the order of the keys."""
        files: dict[Path, Any] = {}
        for path in dict.fromkeys(known[key][0] for key in keys):
            try:
                files[path] = np.load(path, mmap_mode="r")
                last = max(row for file, row in known.values() if file == path)
                files[path][last]
                if files[path].ndim != 2 or files[path].dtype != np.float32:
                    raise ValueError(f"its rows are {files[path].shape} {files[path].dtype}")
            except Exception as error:  # NumPy raises nearly anything on broken files
                raise _damaged(path, error) from error
        if not files:
            return np.zeros((0, 0), np.float32)
        width = next(iter(files.values())).shape[1]
        header = {"descr": "<f4", "fortran_order": False, "shape": (len(keys), width)}
        try:  # by writing: a memory map ends the process where the disk is full
            with replacing(self.folder / "all.npy") as path, path.open("wb") as out:
                np.lib.format.write_array_header_1_0(out, header)
                for key in keys:
                    file, row = known[key]
                    out.write(files[file][row].astype("<f4").tobytes())
        except OSError as error:
            raise self._unwritten(error) from error
        rows: Rows = np.load(self.folder / "all.npy", mmap_mode="r")
        return rows


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} is damaged ({error}): remove its folder, and what is in it is computed again"
    )
