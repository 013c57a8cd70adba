"""Rows are computed once, whatever stops the run."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from elip_plugin import pictures
from elip_plugin.check.embed import Batch, fill, read_ahead
from elip_plugin.check.store import Rows, Store
from elip_plugin.errors import DataError
from elip_plugin.pictures import find_items

KEYS = [f"{i:032x}" for i in range(37)]
BATCH = 8


class Computer:
    """Makes a row of each place, and notes which were asked for.

    Attributes:
        asked: Places in the order in which they were asked for.
        bad: Places that have a fault.
        stop_at: A place at which it is stopped.
    """

    def __init__(self, bad: Sequence[int] = (), stop_at: int = -1) -> None:
        self.asked: list[int] = []
        self.bad, self.stop_at = bad, stop_at

    def batches(self, places: Sequence[int]) -> Iterator[Batch]:
        for start in range(0, len(places), BATCH):
            part = places[start : start + BATCH]
            if self.stop_at in part:
                raise KeyboardInterrupt
            self.asked += part
            good = [i for i in part if i not in self.bad]
            yield good, good, {i: f"fault {i}" for i in part if i in self.bad}


def encode(values: list[Any]) -> Rows:
    return np.array([[i, -i] for i in values], np.float32)


def run(
    folder: Path, made: Computer, keys: Sequence[str] = KEYS, told: Any = lambda done: None
) -> tuple[Rows, dict[int, str]]:
    return fill(Store(folder), keys, made.batches, encode, told)


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    first = Computer(bad=(3,), stop_at=BATCH + 1)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, first)
    assert first.asked == list(range(BATCH))
    second, told = Computer(bad=(3,)), list[int]()
    rows, faults = run(tmp_path, second, told=told.append)
    assert second.asked == [3, *range(BATCH, len(KEYS))]  # what had a fault is tried again
    assert faults == {3: "fault 3"} and isinstance(rows, np.memmap)
    assert rows[:, 0].tolist() == [i for i in range(len(KEYS)) if i != 3]
    assert told[0] == BATCH - 1 and told[-1] == len(KEYS)
    third = Computer()
    rows, faults = run(tmp_path, third)
    assert third.asked == [3] and not faults  # a fault that passes leaves nothing
    assert rows[:, 0].tolist() == list(range(len(KEYS)))


def test_rows_are_found_in_any_order_and_new_ones_are_added(tmp_path: Path) -> None:
    run(tmp_path, Computer(), KEYS[:10])
    more = Computer()
    rows, _ = run(tmp_path, more, ["f" * 32, *KEYS[9:3:-1]])
    assert more.asked == [0]
    assert rows[:, 1].tolist() == [0, -9, -8, -7, -6, -5, -4]
    assert run(tmp_path, Computer(), KEYS[:4])[0][:, 0].tolist() == [0, 1, 2, 3]


RECORD = 32 + 2 * 4


@pytest.mark.parametrize("left", [0, 1, 31, 32, RECORD - 1])
def test_what_a_stop_leaves_of_a_record_does_not_count(tmp_path: Path, left: int) -> None:
    run(tmp_path, Computer(), KEYS[:BATCH])
    with (tmp_path / "2.rows").open("ab") as file:
        file.write(b"x" * left)
    made = Computer()
    rows, _ = run(tmp_path, made)
    assert made.asked == list(range(BATCH, len(KEYS)))
    assert rows[:, 0].tolist() == list(range(len(KEYS)))


def test_rows_that_were_cut_off_are_made_again(tmp_path: Path) -> None:
    run(tmp_path, Computer())
    with (tmp_path / "2.rows").open("r+b") as file:
        file.truncate(RECORD * 30 + 3)
    made = Computer()
    rows, _ = run(tmp_path, made)
    assert made.asked == list(range(30, len(KEYS)))
    assert rows[:, 0].tolist() == list(range(len(KEYS)))


def test_all_may_have_faults(tmp_path: Path) -> None:
    rows, faults = run(tmp_path, Computer(bad=range(4)), KEYS[:4])
    assert len(rows) == 0 and len(faults) == 4


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with (
        Store(tmp_path).adding(),
        pytest.raises(DataError, match=r"another process adds to .*another --out"),
    ):
        run(tmp_path, Computer())
    assert len(run(tmp_path, Computer())[0]) == len(KEYS)


KILLED = """
import os, signal, sys
import numpy as np
from pathlib import Path
from elip_plugin.check.store import Store
with Store(Path(sys.argv[1])).adding() as add:
    for start in range(0, 1000, 50):
        keys = [f"{i:032x}" for i in range(start, start + 50)]
        add(keys, np.array([[i, -i] for i in range(start, start + 50)], np.float32))
        print(start + 50, flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
"""


def test_a_killed_process_loses_a_batch_at_most(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [int(process.stdout.readline()) for _ in range(7)]
        process.send_signal(signal.SIGKILL)
    keys = [f"{i:032x}" for i in range(1000)]
    places = Store(tmp_path).places(keys)
    there = int((places >= 0).sum())
    assert there >= said[-1] and (places[:there] == np.arange(there)).all()
    assert Store(tmp_path).rows(keys[:there])[:, 0].tolist() == list(range(there))


def test_open_files_do_not_grow_with_the_pictures(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    keys = [f"{i:032x}" for i in range(70_000)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        with Store(tmp_path).adding() as add:
            for start in range(0, len(keys), 100):
                part = keys[start : start + 100]
                add(part, np.full((len(part), 2), start, np.float32))
        assert Store(tmp_path).rows(keys)[-1].tolist() == [69_900, 69_900]
        turned = Store(tmp_path).rows(keys[::-1])
        assert turned[0].tolist() == [69_900, 69_900] and len(turned) == len(keys)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_read_that_fails_once_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    for i in range(3):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / f"{i}.png")
    monkeypatch.setattr(pictures, "PAUSES", (0.001, 0.001, 0.0))
    read, fails = Path.open, {"1.png": 2, "2.png": 3}

    def failing(self: Path, *mode: Any, **options: Any) -> Any:
        if fails.get(self.name, 0):
            fails[self.name] -= 1
            raise OSError(5, "Input/output error")
        return read(self, *mode, **options)

    items = find_items([tmp_path])
    monkeypatch.setattr(Path, "open", failing)
    batches = read_ahead(items, lambda image: image.getpixel((0, 0))[0], 2)
    made = list(batches(range(3)))
    assert [values for _, values, _ in made] == [[0, 1], []]
    assert "Input/output error" in made[1][2][2]


@pytest.mark.parametrize("size", [1, 3, 100])
def test_batches_are_as_large_as_asked(tmp_path: Path, size: int) -> None:
    from PIL import Image

    for i in range(7):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / f"{i}.png")
    made = list(read_ahead(find_items([tmp_path]), lambda image: image, size)(range(7)))
    assert [len(places) for places, _, _ in made] == {1: [1] * 7, 3: [3, 3, 1], 100: [7]}[size]
    assert [place for places, _, _ in made for place in places] == list(range(7))
