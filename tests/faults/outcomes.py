"""What may come of a hostile input: an error of ours, or a right result; in bounded resources."""

from __future__ import annotations

import json
import os
import resource
import signal
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from elip_plugin.errors import ElipError

T = TypeVar("T")

LONGEST = 20_000
"""Characters of a message at most: nobody reads more, and some inputs would fill the memory."""


def outcome(call: Callable[[], T]) -> T | None:
    """Return the result; None if it was refused by an error that can be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call()
    except ElipError as error:
        assert 0 < len(str(error)) < LONGEST
        causes = [type(each) for each in chain_of(error)]
        assert MemoryError not in causes, "the input filled the memory first"
        return None


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """Iterate over an error and those that it was raised from or during."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def contained(call: Callable[[], Any], *, cpu: int = 20, memory: int = 1 << 28) -> str:
    """Run something in a process with bounded CPU seconds and further memory.

    Returns "right" if it returns, "refused" if an error of ours ends it, or what else happened.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = _run_contained(call, cpu, memory)
            os.write(writing, json.dumps(said).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answers:
        said = answers.read()
    _, status = os.waitpid(child, 0)
    if not said:
        return f"ended by signal {status & 127}"
    return str(json.loads(said))


def _run_contained(call: Callable[[], Any], cpu: int, memory: int) -> str:
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    most = pages * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    used = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
    resource.setrlimit(resource.RLIMIT_CPU, (used + cpu, used + cpu))
    signal.alarm(30 * cpu)  # of what waits for ever
    try:
        outcome(call)
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    return "no harm"
