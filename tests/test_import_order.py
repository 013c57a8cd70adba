"""Imports go one way through the package; imports inside functions and for types count too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import elip_plugin

ROOT = Path(__file__).parents[1]
PACKAGE = Path(elip_plugin.__file__).parent

LAYERS = (
    ("errors",),
    ("files",),
    ("pictures",),
    ("core",),
    ("reducers",),
    ("config",),
    ("planning",),
    ("patching",),
    ("hosts",),
    ("api",),
    ("label",),
    ("export",),
    ("adapting",),
    ("measure",),
    ("visualize",),
    ("check",),
    ("cli",),
    ("__main__",),
)
"""A part may import itself and the layers before its own."""

LEVEL = {part: level for level, layer in enumerate(LAYERS) for part in layer}
SHARED = ("autoload", "base", "building", "registry", "versions")
FROM_FOLDERS = {("anyvit", "hosts.transformers.folders")}
"""`hf:FOLDER` is one loader for two hosts: models with texts of their own, and those without."""
HOST_LIBRARIES = ("open_clip", "open_clip_train", "lavis", "timm", "transformers", "torchvision")
PUBLIC = {*elip_plugin.__all__, "TrainerCallback", "__version__", "export"}
OF_EMBEDDING = {"check.embed", "check.neighbors", "check.store", "measure.preview", "pictures"}
OF_EXAMPLES = {"errors", "files", "reducers"} | OF_EMBEDDING
"""What examples and benchmarks use besides; docs/writing_a_reducer.md uses `reducers`."""


def imports(path: Path, package: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a file imports; submodules are told from names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}:{node.lineno}: relative import"
            place = package.parent.joinpath(*node.module.split("."))
            for alias in node.names:
                inner = place / alias.name
                submodule = inner.is_dir() or inner.with_suffix(".py").is_file()
                public = node.module == "elip_plugin"
                name = f"{node.module}.{alias.name}" if submodule or public else node.module
                yield node.lineno, name


def starts_with(module: str, parts: tuple[str, ...]) -> bool:
    return any(module == part or module.startswith(f"{part}.") for part in parts)


def why_not(importer: str, imported: str) -> str | None:
    """Why a module of the package must not import another, names relative to the package."""
    layer, other = importer.partition(".")[0], imported.partition(".")[0]
    if other not in LEVEL:
        return "import it from its own module, not from the package"
    if layer != other and LEVEL[layer] <= LEVEL[other]:
        return "runs back"
    if layer == other == "hosts" and imported.count("."):
        host, other_host = importer.split(".")[1:2], imported.split(".")[1:2]
        shared = other_host[0] in SHARED or (host[0], imported) in FROM_FOLDERS
        if host != other_host and not shared:
            return "names a host" if importer.count(".") == 1 else "imports another host"
    return None


def faults(package: Path) -> list[str]:
    found = []
    for path in sorted(package.rglob("*.py")):
        names = path.relative_to(package).with_suffix("").parts
        importer = ".".join(names[:-1] if names[-1] == "__init__" else names)
        if importer == "":
            continue  # the package itself loads public names from everywhere, when asked for
        for line, module in imports(path, package):
            top, _, imported = module.partition(".")
            reason = None
            if top == "elip_plugin":
                reason = why_not(importer, imported)
            elif top in HOST_LIBRARIES and not importer.startswith("hosts."):
                reason = "only a host imports a host library"
            elif top in HOST_LIBRARIES and importer.count(".") == 1 and names[-1] != "__init__":
                reason = "no host library outside the host's folder"
            if reason:
                found.append(f"{importer}:{line} -> {module}: {reason}")
    return found


def test_no_import_runs_back() -> None:
    assert faults(PACKAGE) == []


@pytest.mark.parametrize(
    ("file", "line", "reason"),
    [
        ("core/score.py", "def f():\n    from elip_plugin.api import apply", "runs back"),
        ("config/checks.py", "import elip_plugin.patching.pruner", "runs back"),
        ("errors.py", "from elip_plugin.core import score", "runs back"),
        ("measure/speed.py", "from elip_plugin.visualize import html", "runs back"),
        ("patching/swap.py", "if 0:\n    import elip_plugin.cli.main", "runs back"),
        ("hosts/open_clip/names.py", "import elip_plugin.api", "runs back"),
        ("hosts/open_clip/names.py", "import elip_plugin.hosts.lavis", "another host"),
        ("hosts/registry.py", "from elip_plugin.hosts import open_clip", "names a host"),
        ("hosts/base.py", "def f():\n    import open_clip", "no host library"),
        ("visualize/html.py", "import lavis.models", "only a host"),
        ("cli/plan.py", "from elip_plugin import apply", "from its own module"),
    ],
)
def test_an_import_that_runs_back_is_found(
    tmp_path: Path, file: str, line: str, reason: str
) -> None:
    """The check itself: on a tree of the same files with one import only."""
    package = tmp_path / "elip_plugin"
    for path in PACKAGE.rglob("*.py"):
        copy = package / path.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text("")
    assert faults(package) == []
    (package / file).write_text(line)
    (found,) = faults(package)
    assert reason in found


def outside(path: Path) -> Iterator[str]:
    """What a file outside of the package uses of it that is not public."""
    public = {""} | OF_EXAMPLES | PUBLIC
    for line, module in imports(path, PACKAGE):
        top, _, name = module.partition(".")
        if top == "elip_plugin" and name not in public:
            yield f"{path.relative_to(ROOT)}:{line} imports {module}"
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "elip_plugin"
            and node.attr not in PUBLIC
        ):
            yield f"{path.relative_to(ROOT)}:{node.lineno} uses elip_plugin.{node.attr}"


@pytest.mark.parametrize("folder", ["benchmarks", "examples"])
def test_benchmarks_and_examples_use_public_names_only(folder: str) -> None:
    inside = ROOT / "benchmarks" / "machine"  # measures the package with its own tools
    files = [path for path in sorted((ROOT / folder).rglob("*.py")) if path.parent != inside]
    assert files
    assert [fault for path in files for fault in outside(path)] == []
