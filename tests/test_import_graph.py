"""No circle of imports between the package's files, imports inside functions included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import elip_plugin

PACKAGE = Path(elip_plugin.__file__).parent
Graph = dict[str, set[str]]

ALLOWED: dict[tuple[str, str], str] = {}
"""Imports inside functions that are left out: who imports, what, and the reason."""


def imported(tree: ast.AST, package: Path) -> Iterator[str]:
    """Full names of the modules that code imports; names inside of them are left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            place = package.parent.joinpath(*node.module.split("."))
            for alias in node.names:
                inner = place / alias.name
                submodule = inner.is_dir() or inner.with_suffix(".py").is_file()
                yield f"{node.module}.{alias.name}" if submodule else node.module
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (a.value for a in node.args if isinstance(a, ast.Constant))


class WithoutTypes(ast.NodeTransformer):
    """Removes what only type checkers read."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)


def import_graph(package: Path) -> Graph:
    """The files of a package by their names in it, and what each imports of it."""
    graph: Graph = {}
    for path in package.rglob("*.py"):
        names = path.relative_to(package).with_suffix("").parts
        name = ".".join(names[:-1] if names[-1] == "__init__" else names)
        tree = WithoutTypes().visit(ast.parse(path.read_text()))
        found = {module.partition(".") for module in imported(tree, package)}
        graph[name] = {rest for top, _, rest in found if top == package.name} - {name}
    graph.pop("", None)  # the package itself loads public names from everywhere, when asked for
    return graph


def circles(graph: Graph) -> list[list[str]]:
    """Groups of files of which each imports every other, directly or not."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        todo = [start]
        while todo:
            new = graph.get(todo.pop(), set()) - found
            found |= new
            todo += new
        return found

    reach = {name: reached(name) for name in graph}
    groups = {frozenset(m for m in reach[n] if n in reach.get(m, ())) for n in graph}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def test_no_file_imports_itself_through_others() -> None:
    graph = import_graph(PACKAGE)
    for importer, module in ALLOWED:
        graph[importer].remove(module)  # fails where the import is gone: then it leaves the list
    assert circles(graph) == []


def test_a_circle_is_found(tmp_path: Path) -> None:
    """The check itself, on three files: through a function, a string, and not through a type."""
    package = tmp_path / "some"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("import some.a")
    (package / "a.py").write_text("from some.inner import b")
    (package / "inner" / "__init__.py").write_text("")
    (package / "inner" / "b.py").write_text("def f():\n    from some.c import x")
    (package / "c.py").write_text("if TYPE_CHECKING:\n    from some import a\nx = 1")
    assert circles(import_graph(package)) == []
    (package / "c.py").write_text("import importlib\nimportlib.import_module('some.a')")
    assert circles(import_graph(package)) == [["a", "c", "inner.b"]]
    (package / "c.py").write_text("x = 1")
    (package / "inner" / "__init__.py").write_text("def f():\n    from some.inner import b")
    (package / "inner" / "b.py").write_text("from some.inner import f")
    assert circles(import_graph(package)) == [["inner", "inner.b"]]
