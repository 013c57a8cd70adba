"""`import lavis` beside this package leaves LAVIS as it is; its repairs know nothing of pruning."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

pytest.importorskip("lavis")

from lavis_family import one_thread, pruned, stock  # noqa: F401
from packaging.version import Version

from elip_plugin.hosts.lavis import compat

HERE = Path(__file__).parents[3]
PINNED = Version(metadata.version("transformers")) < Version("4.27")

ALLOWED = (
    "elip_plugin.data",
    "elip_plugin.errors",
    "elip_plugin.hosts.lavis.compat",
    "elip_plugin.hosts.versions",
    "elip_plugin.patching.checkpoints",
    "elip_plugin.patching.monkeypatch",
)
"""What the repairs may import of this package."""


def imported(path: Path) -> set[str]:
    """All modules of this package that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("elip_plugin")}


def foreign(name: str) -> bool:
    return not any(f"{name}.".startswith(f"{allowed}.") for allowed in ALLOWED)


def test_the_repairs_import_nothing_of_pruning(tmp_path: Path) -> None:
    files = sorted(Path(compat.__path__[0]).glob("*.py"))
    assert len(files) > 5
    assert [(f.name, n) for f in files for n in imported(f) if foreign(n)] == []
    wrong = tmp_path / "wrong.py"
    for line in (
        "from elip_plugin.patching.pruner import Pruner",
        "def f():\n    from elip_plugin.hosts.lavis import models",
        "import elip_plugin.config",
    ):
        wrong.write_text(line)
        assert [foreign(name) for name in imported(wrong)] == [True]


SNAPSHOT = """
import importlib, inspect, pkgutil, sys, warnings
warnings.simplefilter("ignore")
import lavis, lavis.common.optims, lavis.datasets.builders, lavis.runners, lavis.tasks

for found in pkgutil.walk_packages(lavis.__path__, "lavis."):
    try:
        importlib.import_module(found.name)
    except Exception:  # of an optional dependency
        pass

def attributes():
    found = {}
    for name in [name for name in sys.modules if name.partition(".")[0] == "lavis"]:
        module = sys.modules[name]
        found.update({(name, key): value for key, value in vars(module).items()})
        for cls in {c for c in vars(module).values() if inspect.isclass(c)}:
            if cls.__module__.startswith("lavis"):
                where = f"{cls.__module__}.{cls.__qualname__}"
                found.update({(where, key): value for key, value in vars(cls).items()})
    return found

before = attributes()
from elip_plugin.hosts.lavis import HOST
HOST.prepare()
HOST.register()
from lavis.common.registry import registry
assert registry.get_model_class("elip_albef_pretrain") is not None
after = attributes()
assert len(before) > 3000, len(before)
# What Python itself keeps on a class, such as its weak registry of subclasses, may be made anew.
changed = [key for key in {**before, **after} if before.get(key) is not after.get(key)]
print(sorted(key for key in changed if key[1] not in ("_abc_impl", "__warningregistry__")))
"""


@pytest.mark.skipif(not PINNED, reason="LAVIS is broken beside newer libraries, and repaired")
def test_registering_changes_no_attribute_of_lavis() -> None:
    assert output(SNAPSHOT, ELIP_AUTOLOAD="0") == "[]"


OUTPUTS = """
import sys, tempfile, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import lavis
import torch
loaded = "elip_plugin.hosts.lavis" in sys.modules
from lavis_builders import TRAINED, losses, local_tokenizer, generated
with tempfile.TemporaryDirectory() as folder, local_tokenizer(Path(folder)):
    found = [losses(TRAINED[name]) for name in ("albef_pretrain", "blip_pretrain", "blip_vqa")]
    print([loss.hex() for row in found for loss in row], generated())
print(loaded, file=sys.stderr)
"""


def output(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{HERE}"}
        | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()
