"""Processes that are killed: at a random moment, or in the middle of a file that they write."""

from __future__ import annotations

import builtins
import hashlib
import io
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

Call = Callable[[], Any]


def forked(call: Call) -> int:
    """Run something in a process of its own; return its number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        call()
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def status_of(call: Call) -> int:
    """Run something in a process of its own; return its exit status, below 0 for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(forked(call), 0)[1])


def said_by(call: Call) -> tuple[int, str]:
    """Run something in a process of its own; return its exit status and what it says of errors."""
    reading, writing = os.pipe()

    def run() -> None:
        with (
            os.fdopen(writing, "w", buffering=1) as sys.stderr,
            open(os.devnull, "w") as sys.stdout,
        ):
            call()

    child = forked(run)
    os.close(writing)
    with os.fdopen(reading, errors="replace") as pipe:
        said = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def kill_after(seconds: float, call: Call) -> bool:
    """Kill a process after some seconds; return whether it still ran."""
    child = forked(call)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def moments(number: int, whole: float) -> list[float]:
    """Draw some moments in as many seconds, one in each part of them."""
    chance = random.Random(number)
    return [whole * (i + chance.random()) / number for i in range(number)]


class Cut:
    """A file whose first writing is cut in half by kill -9."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __enter__(self) -> Cut:
        return self

    def __exit__(self, *_: Any) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, content: Any) -> int:
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
        return 0


def kill_in_file(number: int, folder: Path, call: Call) -> bool:
    """Kill a process in the middle of the n-th file that it writes in a folder, from 0.

    Returns whether it wrote as many; the process ends by itself if not.
    """
    opened, real = 0, io.open

    def opening(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        nonlocal opened
        made = real(file, mode, *args, **options)
        inside = isinstance(file, (str, os.PathLike)) and str(folder) in os.path.abspath(file)
        if not inside or not {*mode} & {*"wax+"}:
            return made
        opened += 1
        return Cut(made) if opened == number + 1 else made

    def run() -> None:
        with mock.patch.object(io, "open", opening), mock.patch.object(builtins, "open", opening):
            call()

    status = status_of(run)
    assert status in (0, -signal.SIGKILL), status
    return status != 0


def digests(folder: Path) -> dict[str, str]:
    """The files of a folder, by their content."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
