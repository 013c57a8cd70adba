"""`make test` runs a test where it can fail: what only LAVIS' environment can run has its name."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
MAKEFILE = TESTS.parent / "Makefile"
TOOLS = re.search(r"^TOOLS = .*tests/,(.*)\)$", MAKEFILE.read_text(), re.M)
MODELS = re.search(r"^MODELS = .*tests/,(.*)\)$", MAKEFILE.read_text(), re.M)


def lists(found: re.Match[str] | None) -> set[str]:
    assert found is not None
    return {*found[1].split()}


def test_every_folder_is_one_of_tools_or_of_models() -> None:
    folders = {path.parent.relative_to(TESTS).parts[0] for path in TESTS.glob("*/**/test_*.py")}
    tools, models = lists(TOOLS), {name for name in lists(MODELS) if "." not in name}
    assert tools | models == folders and not tools & models
    assert all((TESTS / name).exists() for name in lists(MODELS))


def test_what_runs_once_runs_somewhere() -> None:
    """`newest` is an environment without LAVIS, and `pins` is LAVIS' own."""
    for path in TESTS.rglob("test_*.py"):
        text, of_lavis = path.read_text(), "lavis" in str(path.relative_to(TESTS))
        assert not ("mark." + "newest" in text and of_lavis), path
        assert not ("mark." + "pins" in text and not of_lavis), path


@pytest.mark.parametrize("folder", sorted(lists(TOOLS)))
def test_a_test_of_a_tool_that_needs_lavis_is_named_after_it(folder: str) -> None:
    """By `-k lavis` such tests are chosen, and skipped nowhere else."""
    for path in (TESTS / folder).rglob("test_*.py"):
        if "lavis" in path.name:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.FunctionDef) and node.name.startswith("test_")):
                continue
            if re.search(r"importorskip\(.lavis", ast.unparse(node)):
                assert "lavis" in node.name, f"{path.name}: {node.name}"
