"""What forwards do, recorded from outside: token counts of blocks, and choices."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from elip_plugin.core.score import score
from elip_plugin.reducers import Selection, find_reducer


def is_scoring() -> bool:
    """Whether the caller runs inside `score`, whose calls of blocks only look ahead.

    Told by the stack, because blocks without dropout are looked through by their own forward.
    """
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code is score.__code__:
            return True
        frame = frame.f_back
    return False


@contextmanager
def recorded_lengths(modules: Iterable[Any], dim: int = 1) -> Iterator[list[int]]:
    """Record the sequence length of each call, but not of those that only look ahead.

    In a mode a block takes tokens [B, T, D], whatever its own order of dimensions.
    """
    lengths: list[int] = []

    def record(module: Any, args: Any, options: Any) -> None:
        if not is_scoring():
            lengths.append(args[0].shape[1 if "run" in options else dim])

    hooks = [module.register_forward_pre_hook(record, with_kwargs=True) for module in modules]
    try:
        yield lengths
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def recorded_choices(reducer: str = "elip") -> Iterator[list[Selection]]:
    """Record each stage's selection, of all forwards."""
    cls = type(find_reducer(reducer))
    made: list[Selection] = []
    decide = cls.decide

    def record(self: Any, *args: Any) -> Selection:
        made.append(decide(self, *args))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cls, "decide", record)
        yield made


@contextmanager
def replayed_choices(made: Iterable[Selection], reducer: str = "elip") -> Iterator[None]:
    """Let stages take these selections, one after the other."""
    left = iter(made)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(find_reducer(reducer)), "decide", lambda *_: next(left))
        yield
    assert next(left, None) is None
