"""research/faults.md says what the result files say, and names tests that are there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.faults import families, mutants, page, planted, versions
from benchmarks.faults.results import EXPLAINED
from benchmarks.tables import fill

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "research" / "faults.md").read_text()


def test_the_page_is_current() -> None:
    """Write it anew with `python -m benchmarks.faults report --write`."""
    assert fill(PAGE, page.tables()) == PAGE


def test_every_table_has_its_place() -> None:
    assert all(f"<!-- {name} -->" in PAGE for name in page.tables())


def test_the_tests_that_found_bugs_are_there() -> None:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE)
    assert len(named) >= 12
    for file, test in named:
        [path] = (ROOT / "tests").rglob(file)
        assert f"def {test}(" in path.read_text(), test


def test_the_files_of_each_family_are_there() -> None:
    for family in families.FAMILIES:
        for folder, names in (("tests/faults", family.tests), ("tests", family.laws)):
            assert all((ROOT / folder / name).exists() for name in names), family.name
    for tests in (*mutants.TESTS.values(), *(fault.tests for fault in planted.FAULTS)):
        assert all((ROOT / name).exists() for name in tests)


def test_each_planted_fault_changes_the_program() -> None:
    made = list(planted.as_mutants())
    assert len(made) >= 20
    for _, mutant in made:
        changed = mutants.program(mutant.code)
        assert changed and changed != mutants.program(
            (ROOT / mutants.PACKAGE / mutant.path).read_text()
        )


def test_annotations_are_no_program() -> None:
    assert mutants.program("x: int = 1") == mutants.program("x: str = 1")
    assert mutants.program("def f(a: int) -> int:\n    'text'\n    return a") == mutants.program(
        "def f(a):\n    return a"
    )
    assert mutants.program("x = 1") != mutants.program("x = 2")
    assert mutants.program("def f(a, /: pass") == ""


def test_the_command_imports_no_file_that_is_mutated() -> None:
    """Mutants take effect when the package is imported, which is after the fork."""
    code = "import sys, benchmarks.faults.__main__; print('elip_plugin.core' in sys.modules)"
    made = subprocess.run([sys.executable, "-c", code], cwd=families.ROOT, capture_output=True)
    assert made.stdout == b"False\n", made.stderr


def test_explained_mutants_have_a_reason() -> None:
    for row in json.loads(EXPLAINED.read_text()):
        assert {*row} == {"path", "before", "after", "why"} and len(row["why"]) > 20
        assert row["before"] in (ROOT / mutants.PACKAGE / row["path"]).read_text()


def test_the_oldest_versions_are_the_bounds_of_the_metadata() -> None:
    text = 'dependencies = [\n  "a>=2.4",\n]\nopen-clip = ["b[c]>=0.2.5,<=0.2.86", "d"]\n'
    assert versions.requirements(text, oldest=True) == ["a==2.4.*", "b[c]==0.2.5.*", "d"]
    assert versions.requirements(text, oldest=False) == ["a>=2.4", "b[c]>=0.2.5,<=0.2.86", "d"]
    found = versions.requirements((ROOT / "pyproject.toml").read_text(), oldest=True)
    assert {each.partition("==")[0] for each in found} >= {"torch", "typer", "open_clip_torch"}
    assert all((ROOT / "tests" / name).exists() for name in versions.TESTS)


def test_an_interval() -> None:
    low, high = page.wilson(90, 100)
    assert low == pytest.approx(0.8256, abs=1e-4) and high == pytest.approx(0.9448, abs=1e-4)
