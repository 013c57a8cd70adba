"""The help of every command has at least two examples, which the command itself accepts."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import elip_plugin
from elip_plugin.cli.main import app

RUN = CliRunner(env={"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"})


def commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        if not child.hidden:
            yield from commands(child, f"{path} {name}")


COMMANDS = dict(commands(typer.main.get_command(app), "elip"))


@pytest.mark.parametrize("path", COMMANDS)
def test_examples(path: str) -> None:
    shown = RUN.invoke(app, [*path.split()[1:], "--help"])
    assert shown.exit_code == 0
    _, _, end = shown.output.partition("Examples:")
    lines = [line.strip() for line in end.splitlines() if line.strip()]
    assert len(lines) >= 2
    for line in lines:
        found = re.search(r"(elip|python -m elip_plugin) ([^|)]*)", line)
        assert found is not None, f"an example fits a line of 80 columns: {line}"
        parse(shlex.split(found[2]))


def parse(words: list[str]) -> None:
    """Let click parse a command line; it raises at what is not known."""
    path = "elip"
    while words and f"{path} {words[0]}" in COMMANDS:
        path += f" {words.pop(0)}"
    assert not hasattr(COMMANDS[path], "commands"), f"{path} alone does nothing"
    COMMANDS[path].make_context(path, words)


@pytest.mark.parametrize(
    ("words", "error", "named"),
    [
        ("plan --moddel X", "NoSuchOption", "moddel"),
        ("bench quick", "AssertionError", "alone does nothing"),
        ("show", "MissingParameter", "model"),
    ],
)
def test_the_parser_of_examples_can_fail(words: str, error: str, named: str) -> None:
    with pytest.raises(Exception, match=named) as caught:
        parse(shlex.split(words))
    assert caught.typename == error  # of click, or of the copy of it that newer typers have


def test_the_version() -> None:
    shown = RUN.invoke(app, ["--version"])
    assert shown.exit_code == 0
    assert shown.output.split() == ["elip-plugin", elip_plugin.__version__]
