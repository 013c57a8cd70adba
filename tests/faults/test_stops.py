"""Kill -9 at random moments, and disks that become full, while a check stores its embeddings."""

from __future__ import annotations

import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faults.counting import is_long, tried
from elip_plugin.check.store import Store
from elip_plugin.errors import DataError

KILLS = 60 if is_long() else 6
KEYS = [f"key {i}" for i in range(640)]


def rows_of(places: Any) -> np.ndarray:
    return np.stack([np.full(256, place, np.float32) for place in places])


def fill(folder: Path) -> np.ndarray:
    rows, faults = Store(folder).fill(KEYS, lambda places: (rows_of(places), {}), lambda _: None)
    assert not faults
    return np.array(rows)


def forked(call: Callable[[], Any]) -> int:
    """Run something in a process of its own; return its number."""
    child = os.fork()
    if child == 0:
        try:
            call()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def test_a_store_is_killed_at_random_moments(tmp_path: Path) -> None:
    """What is there afterwards is whole, and the rest is computed; nothing else is left lying."""
    expected, chance = rows_of(range(len(KEYS))), random.Random(0)
    began = time.monotonic()
    fill(tmp_path / "whole")
    whole = time.monotonic() - began
    killed = 0
    while killed < KILLS:
        folder = tmp_path / str(killed)
        child = forked(lambda folder=folder: fill(folder))
        time.sleep(chance.random() * whole)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert np.array_equal(fill(folder), expected)
        killed += 1
    tried("kill -9 of a store of embeddings", killed)


def test_a_store_on_a_full_disk(tmp_path: Path) -> None:
    """Files end at each of some sizes: one error, and what was there stays."""
    expected = rows_of(range(len(KEYS)))
    sizes = range(0, 700_000, 23_000) if is_long() else (0, 100, 70_000, 600_000)

    def fill_little(most: int, folder: Path) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        try:
            fill(folder)
        except DataError as error:
            if "cannot be written" in str(error):
                os._exit(3)
            raise

    for most in sizes:
        folder = tmp_path / str(most)
        child = forked(lambda most=most, folder=folder: fill_little(most, folder))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, 3), (most, status)
        assert not list(folder.glob("*.unfinished"))
        assert np.array_equal(fill(folder), expected)
        tried("full disks")
