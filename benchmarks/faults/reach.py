"""Which tests reach a line: a mutant there can fail no other test, and so only these are run."""

from __future__ import annotations

import ast
import sys
import threading
import time
from collections.abc import Generator
from types import FrameType
from typing import Any

import pytest

Reach = dict[str, tuple[float, set[tuple[str, int]]]]
"""Tests by their node, each with its seconds and the lines that it runs, of files by their path."""


class Recorder:
    """Plugin of pytest: records which lines of some files each test runs.

    What sets a test up may be shared by the tests of its file, so it counts for all of them.
    """

    def __init__(self, files: dict[str, str]) -> None:
        self.files = files  # the names of the files that are recorded, by the names of their code
        self.lines: set[tuple[str, int]] = set()
        self.shared: dict[str, set[tuple[str, int]]] = {}
        self.tests: Reach = {}

    def reach(self) -> Reach:
        """Return what was recorded."""
        return {
            name: (seconds, lines | self.shared[name.partition("::")[0]])
            for name, (seconds, lines) in self.tests.items()
        }

    def _tracer(self) -> Any:
        files, lines = self.files, self.lines  # of a test; this is called millions of times

        def trace(frame: FrameType, event: str, arg: Any) -> Any:
            file = files.get(frame.f_code.co_filename)
            if file is None:
                return None

            def trace_lines(frame: FrameType, event: str, arg: Any) -> Any:
                lines.add((file, frame.f_lineno))
                return trace_lines

            return trace_lines

        return trace

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: Any) -> Generator[None, Any, Any]:
        """Record what sets a test up."""
        _forget(set(self.files))
        self.lines = self.shared.setdefault(item.nodeid.partition("::")[0], set())
        return (yield from self._traced())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: Any) -> Generator[None, Any, Any]:
        """Record a test."""
        began, self.lines = time.process_time(), set()
        self.tests[item.nodeid] = 0.0, self.lines
        try:
            return (yield from self._traced())
        finally:
            self.tests[item.nodeid] = time.process_time() - began, self.lines

    def _traced(self) -> Any:
        tracer = self._tracer()
        threading.settrace(tracer)
        sys.settrace(tracer)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)


def _forget(files: set[str]) -> None:
    """Clear the caches of the files' functions, so that each test runs what it needs itself."""
    for module in list(sys.modules.values()):
        if vars(module).get("__file__") in files:
            for value in list(vars(module).values()):
                # Patched classes are told apart by identity, so those that are there must stay.
                if hasattr(value, "cache_clear") and value.__name__ != "_patched_class":
                    value.cache_clear()


def lines_around(code: str, line: int) -> range | None:
    """Return the lines of the statement in a function that a line is in.

    Args:
        code: The source of a file.
        line: The line, from 1.

    Returns:
        Its lines; of a compound one its head only. None for what runs when the file is imported.
    """
    nodes = list(ast.walk(ast.parse(code)))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    bodies = [part for node in functions for part in node.body if line in _lines(part)]
    if not bodies:
        return None
    inner = [node for part in bodies for node in ast.walk(part) if isinstance(node, ast.stmt)]
    last = max((node for node in inner if line in _lines(node)), key=lambda node: node.lineno)
    body = getattr(last, "body", None)
    return range(last.lineno, max(body[0].lineno, last.lineno + 1)) if body else _lines(last)


def _lines(node: ast.stmt) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)
