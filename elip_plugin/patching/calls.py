"""What belongs to one call, in a place of its own for each thread.

Nothing of a forward lies on a module or a pruner, which threads share. A value is opened for an
owner, and found by that owner in the same thread until the context ends. A `threading.local` is
what torch.compile traces without a graph break; a context variable is not.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class Thread(threading.local):
    """The values that are open in a thread, each with its owner and the entry it is in."""

    def __init__(self) -> None:
        self.innermost: tuple[Any, Any, Any] | None = None


thread = Thread()


@contextmanager
def opened(owner: object, value: T) -> Iterator[T]:
    """Open a value for an owner, by identity, inside the context, in this thread alone."""
    before = thread.innermost
    thread.innermost = (owner, value, before)
    try:
        yield value
    finally:
        thread.innermost = before


def find(owner: object, kind: type[T]) -> T | None:
    """Find the innermost value of a kind that is open for an owner in this thread, if any."""
    entry = thread.innermost
    while entry is not None:
        if entry[0] is owner and isinstance(entry[1], kind):
            return entry[1]
        entry = entry[2]
    return None
