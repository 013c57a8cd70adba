"""Every Python snippet of the README runs; every command of it exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda text: text.strip().splitlines()[0])
def test_snippet(snippet: str) -> None:
    pytest.importorskip("open_clip")
    exec(compile(snippet, "README.md", "exec"), {"__name__": "readme"})


def test_make_targets_exist() -> None:
    targets = {line.split(":")[0] for line in (ROOT / "Makefile").read_text().splitlines()}
    assert {name for name in re.findall(r"`?make (\w+)", README)} <= targets


def test_no_placeholder_is_left() -> None:
    assert "DEMO_OUTPUT" not in README and "LAVIS_TABLE" not in README
