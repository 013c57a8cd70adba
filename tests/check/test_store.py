"""Rows are computed once, whatever stops the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from elip_plugin.check.store import PER_FILE, Rows, Store
from elip_plugin.errors import DataError

KEYS = [f"key {i}" for i in range(2 * PER_FILE + 5)]


class Computer:
    """Computes a row of its place, and notes which were asked for.

    Attributes:
        asked: Places in the order in which they were asked for.
        bad: Places that have a fault.
        stop_at: A place at which it is stopped.
    """

    def __init__(self, bad: Sequence[int] = (), stop_at: int = -1) -> None:
        self.asked: list[int] = []
        self.bad, self.stop_at = bad, stop_at

    def __call__(self, places: Sequence[int]) -> tuple[Rows, dict[int, str]]:
        if self.stop_at in places:
            raise KeyboardInterrupt
        self.asked += places
        faults = {i: f"fault {i}" for i in places if i in self.bad}
        return np.array([[i, -i] for i in places if i not in faults], np.float32), faults


def fill(
    folder: Path, compute: Computer, keys: Sequence[str] = KEYS
) -> tuple[Rows, dict[int, str]]:
    return Store(folder).fill(keys, compute, lambda done: None)


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    first = Computer(bad=(3,), stop_at=PER_FILE + 1)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, first)
    assert first.asked == list(range(PER_FILE))
    second, told = Computer(bad=(3,)), list[int]()
    rows, faults = Store(tmp_path).fill(KEYS, second, told.append)
    assert second.asked == list(range(PER_FILE, len(KEYS)))
    assert faults == {3: "fault 3"} and isinstance(rows, np.memmap)
    assert rows[:, 0].tolist() == [i for i in range(len(KEYS)) if i != 3]
    assert told == [PER_FILE, 2 * PER_FILE, len(KEYS)]


def test_rows_are_found_in_any_order_and_new_ones_are_added(tmp_path: Path) -> None:
    fill(tmp_path, Computer(), KEYS[:10])
    more = Computer()
    rows, _ = fill(tmp_path, more, ["new", *KEYS[9:3:-1]])
    assert more.asked == [0]
    assert rows[:, 1].tolist() == [0, -9, -8, -7, -6, -5, -4]


def test_a_file_is_finished_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(file: object, rows: object) -> None:
        file.write(b"half of it")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", stopped)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, Computer())
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    (tmp_path / "abc.npy").write_bytes(b"of a run that was killed before its list")
    assert len(fill(tmp_path, Computer())[0]) == len(KEYS)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    fill(tmp_path, Computer())
    damaged = next(path for path in tmp_path.glob("*.npy") if path.name != "all.npy")
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with pytest.raises(DataError, match=f"{damaged.name} is damaged"):
        fill(tmp_path, Computer())
    np.save(damaged, np.zeros((1, 2), np.float32))  # fewer rows than its list says
    with pytest.raises(DataError, match=f"{damaged.name} is damaged"):
        fill(tmp_path, Computer())
    next(tmp_path.glob("*.json")).write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        fill(tmp_path, Computer())


def test_all_rows_may_have_faults(tmp_path: Path) -> None:
    rows, faults = fill(tmp_path, Computer(bad=range(4)), KEYS[:4])
    assert len(rows) == 0 and len(faults) == 4
