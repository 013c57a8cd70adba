"""Mutants: the package with one operator, comparison or number changed; the tests must fail.

The operators are those of cosmic-ray. Its own runner starts a process per mutant, which spends ten
times as long on importing torch as on testing; here one process imports the libraries, and forks.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import math
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.faults.counting import LONG
from benchmarks.faults.reach import Reach, Recorder, lines_around

ROOT = Path(__file__).parents[2]
PACKAGE = "elip_plugin"

MUTATED = ("core", "reducers", "patching", "config", "planning.py")
"""What is mutated: places below the package."""

METHOD = ("tests/core", "tests/test_golden.py", "tests/reducers", "tests/faults/test_numerics.py")
CONFIG = ("tests/test_config.py", "tests/test_config_bugs.py")
PLAN = ("tests/test_plan.py", "tests/faults/test_configs.py")
MODEL = (
    "tests/patching",
    "tests/faults/test_exceptions.py",
    "tests/test_golden.py",
    "tests/hosts/test_toy_host.py",
    "tests/hosts/test_describe_only_host.py",
)
PLACED = ("tests/hosts/open_clip/test_rotary.py",)
WHOLE = ("tests/hosts/open_clip/test_open_clip.py", "tests/test_threads.py")
TESTS = {
    "config": (*CONFIG, *PLAN, "tests/reducers"),
    "planning.py": (*PLAN, *CONFIG, "tests/patching"),
    "core": (*METHOD, "tests/test_plan.py", "tests/patching", *PLACED),
    "reducers": (*METHOD, *PLAN, *CONFIG, "tests/patching", *PLACED),
    "reducers/similarity.py": (
        *("tests/reducers", "tests/hosts/transformers/test_transformers_blip.py"),
        *CONFIG,
    ),
    "patching": (*MODEL, *WHOLE),
    "patching/blocks.py": (*MODEL, *WHOLE, "tests/hosts/transformers/test_transformers.py"),
}
"""Tests of a place or a file, the nearest first; a mutant ends at the first that fails."""

CPU_SECONDS = 180
"""Of a file or folder of a mutant's tests at most; one that does not end is caught."""


@dataclass(frozen=True)
class Mutant:
    """A change of one place.

    Attributes:
        path: The file, below the package.
        line: Its line, from 1.
        operator: The operator of cosmic-ray.
        before: The line as it is, stripped.
        after: The line as it becomes; what differs.
        code: The file's mutated source.
    """

    path: str
    line: int
    operator: str
    before: str
    after: str
    code: str

    @property
    def module(self) -> str:
        """The module's name."""
        return ".".join([PACKAGE, *Path(self.path).with_suffix("").parts]).removesuffix(".__init__")


def sources() -> list[Path]:
    """Return the files that are mutated."""
    places = (ROOT / PACKAGE / place for place in MUTATED)
    return [file for place in places for file in (sorted(place.rglob("*.py")) or [place])]


def sample(number: int, seed: int) -> Iterator[Mutant]:
    """Draw mutants: each place and kind of change has the same chance, and is drawn once.

    Args:
        number: How many at most.
        seed: Of the draw: the first ones of a larger sample are those of a smaller one.

    Yields:
        Mutants that are other programs: not those of annotations, which nothing evaluates.
    """
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    texts = {str(file.relative_to(ROOT / PACKAGE)): file.read_text() for file in sources()}
    found = {name: get_operator(name) for name in operator_names()}
    operators = {name: make() for name, make in found.items() if not make.arguments()}
    places: dict[tuple[str, int, int, str], list[tuple[str, int]]] = {}
    for path, text in texts.items():
        nodes = list(ast_nodes(get_ast(text)))
        for name, operator in operators.items():
            positions = (p for node in nodes for p in operator.mutation_positions(node))
            for occurrence, (start, _) in enumerate(positions):
                place = (path, *start, name.partition("_")[0])
                places.setdefault(place, []).append((name, occurrence))
    chance, drawn = random.Random(seed), 0
    for place in chance.sample(sorted(places), len(places)):
        name, occurrence = chance.choice(places[place])
        code = mutate_code(texts[place[0]], operators[name], occurrence)
        if drawn == number:
            return
        if code is not None and program(code) not in ("", program(texts[place[0]])):
            drawn += 1
            yield Mutant(place[0], place[1], name, *changed_line(texts[place[0]], code), code)


@functools.lru_cache(maxsize=256)
def program(code: str) -> str:
    """Return what a source does, as text without annotations and docstrings; "" if it is none."""
    try:
        tree = ast.parse(code)
    except SyntaxError:  # such as a star in a signature, taken for a product
        return ""
    for node in ast.walk(tree):
        for name in ("returns", "annotation"):
            if hasattr(node, name):
                setattr(node, name, ast.Constant(None))
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [item for item in body if not _is_text(item)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def changed_line(before: str, after: str) -> tuple[str, str]:
    """Return the first line that differs between two sources, in each of them."""
    pairs = zip(before.splitlines(), after.splitlines())
    return next((a.strip(), b.strip()) for a, b in pairs if a != b)


class _Mutated(MetaPathFinder, Loader):
    """Finds one module of the package, and runs its mutated source."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant, self.file = mutant, ROOT / PACKAGE / mutant.path

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> Any:
        if fullname != self.mutant.module:
            return None
        places = [str(self.file.parent)] if self.file.name == "__init__.py" else None
        return importlib.util.spec_from_file_location(
            fullname, self.file, loader=self, submodule_search_locations=places
        )

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.mutant.code, self.file, "exec"), vars(module))


class _Few:
    """Plugin of pytest: of each test's parameters only the first, the middle and the last ones."""

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        groups: dict[str, list[Any]] = {}
        for item in items:
            groups.setdefault(item.nodeid.partition("[")[0], []).append(item)
        kept = (group[i] for group in groups.values() for i in {0, len(group) // 2, len(group) - 1})
        nodes = {item.nodeid for item in kept}
        items[:] = [item for item in items if item.nodeid in nodes]


class _First:
    """Plugin of pytest: remembers the first test that failed."""

    def __init__(self) -> None:
        self.failed = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = f"{report.nodeid} (import)"


def tests_of(path: str) -> list[str]:
    """Return the tests of a mutated file, the nearest first; those named after it before all."""
    wanted = TESTS.get(path) or TESTS[path.partition("/")[0]]
    own = sorted((ROOT / "tests").rglob(f"test_{Path(path).stem}.py"))
    names = dict.fromkeys([*(str(file.relative_to(ROOT)) for file in own), *wanted])
    return [name for name in names if (ROOT / name).exists()]


def load_libraries() -> None:
    """Import what the tests need, without this package, which is imported after the fork."""
    sys.meta_path[:] = [f for f in sys.meta_path if getattr(f, "__name__", "") != "Elip"]
    for name in ("torch", "open_clip", "transformers", "pytest", "hypothesis", "PIL"):
        importlib.import_module(name)
    if any(name.split(".")[0] == PACKAGE for name in sys.modules):
        raise RuntimeError(f"{PACKAGE} is imported already, so no mutant of it can be")


def run(
    mutant: Mutant | None,
    tests: Sequence[str],
    *,
    all_tests: bool = True,
    most_seconds: float = math.inf,
) -> tuple[str, float]:
    """Run tests in a process of its own, forked from this one.

    Args:
        mutant: The mutant; None for the package as it is.
        tests: The tests.
        all_tests: Whether all are run; if not, of those that reach the mutant's line a few of each
            test's parameters.
        most_seconds: CPU seconds after which no further file or folder of tests is begun.

    Returns:
        The first test that failed, "" if none did, or "does not end"; and CPU seconds.
    """
    seconds, whole = 0.0, ([group] for group in tests)
    for nodes in whole if all_tests or mutant is None else _selected(mutant, tests):
        said, spent = forked(functools.partial(_run_here, mutant, nodes, all_tests))
        seconds += spent
        if said != "passed":
            return said or "does not end", seconds
        if seconds > most_seconds:
            break
    return "", seconds


def _selected(mutant: Mutant, tests: Sequence[str]) -> Iterator[list[str]]:
    """Yield the tests of each group that reach a line; all if none does, as at the import."""
    reached = False
    for group in tests:
        nodes = tests_that_reach(mutant, group)
        if nodes:
            reached = True
            yield nodes
    if not reached:
        yield from ([group] for group in tests)


def tests_that_reach(mutant: Mutant, group: str) -> list[str]:
    """Return the tests of a file or folder that reach a mutant's line, the fastest first."""
    around = lines_around((ROOT / PACKAGE / mutant.path).read_text(), mutant.line)
    if around is None or mutant.path == "patching/named.py":  # whose classes are made once
        return [group]
    wanted = {(mutant.path, line) for line in around}
    found = sorted(reach(group).items(), key=lambda item: item[1][0])
    nodes = [node for node, (_, lines) in found if lines & wanted]
    return nodes if 2 * len(nodes) < len(found) else [group]


@functools.cache
def reach(group: str) -> Reach:
    """Record which lines each test of a file or folder runs, in a process of its own."""
    said, _ = forked(lambda: _record_here(group))
    made: Reach = {
        node: (seconds, {(path, line) for path, line in lines})
        for node, (seconds, lines) in json.loads(said).items()
    }
    return made


def forked(call: Callable[[], str]) -> tuple[str, float]:
    """Call a function in a process that is forked from this one.

    Args:
        call: The function.

    Returns:
        What it returned, "" if its process ended before; and CPU seconds.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _contain()
            answer = call().encode()
            with os.fdopen(writing, "wb") as file:
                file.write(answer)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answers:
        said = answers.read()
    os.waitpid(child, 0)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return said, spent


@functools.cache
def run_unchanged(file: str, all_tests: bool) -> tuple[str, float]:
    """Run a file of tests of the package as it is, once; see `run`."""
    return run(None, (file,), all_tests=all_tests)


def _contain() -> None:
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    signal.alarm(10 * CPU_SECONDS)  # of a lock that never opens
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.environ[LONG] = "first"


# Without what explains a failure, which can take longer than the tests.
PLAIN = ("-q", "--assert=plain", "--tb=no", "-p", "no:cacheprovider", "-p", "no:xdist")


def _run_here(mutant: Mutant | None, nodes: Sequence[str], all_tests: bool) -> str:
    import pytest

    if mutant is not None:
        sys.meta_path.insert(0, _Mutated(mutant))
    first = _First()
    status = pytest.main(
        [*PLAIN, "-m", "not slow", "-x", *nodes], plugins=[first, *([] if all_tests else [_Few()])]
    )
    return first.failed or ("passed" if status == 0 else f"pytest ends with {status}")


def _record_here(group: str) -> str:
    import pytest

    names = {str(file): str(file.relative_to(ROOT / PACKAGE)) for file in sources()}
    recorder = Recorder(names)
    pytest.main([*PLAIN, "-m", "not slow", group], plugins=[recorder, _Few()])
    found = recorder.reach().items()
    return json.dumps({node: (seconds, sorted(lines)) for node, (seconds, lines) in found})


def record(mutant: Mutant, killer: str, seconds: float) -> dict[str, Any]:
    """Return a row of the results log."""
    return {
        "path": mutant.path,
        "line": mutant.line,
        "operator": mutant.operator,
        "before": mutant.before,
        "after": mutant.after,
        "caught": bool(killer),
        "by": killer,
        "cpu_seconds": round(seconds, 1),
        "date": time.strftime("%Y-%m-%d"),
    }
