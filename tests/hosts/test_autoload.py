"""Unmodified commands know the models: the start-up hook, in processes of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name

import pytest

ROOT = Path(__file__).parents[2]
LISTED = "import open_clip; print('elip-ViT-B-16' in open_clip.list_models())"


def python(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        cwd=os.environ.get("TMPDIR", "/"),
        check=False,
    )


def test_starting_python_loads_nothing_of_ours() -> None:
    code = "import sys; print([m for m in sys.modules if 'elip' in m], sys.meta_path[0].__name__)"
    assert python("-c", code).stdout.strip() == "[] Elip"


def test_one_list_of_hosts() -> None:
    """The list in autoload, the start-up line, the entry points and the folders agree."""
    from elip_plugin.hosts import registry
    from elip_plugin.hosts.autoload import AT_IMPORT, HOSTS, STAND_IN
    from elip_plugin.hosts.base import Host

    line = (ROOT / "elip.pth").read_text()
    assert line.count("\n") == 1 and f"class {STAND_IN}:" in line
    assert f"name in {AT_IMPORT!r}" in line
    (section,) = re.findall(
        rf'\[project.entry-points."{registry.GROUP}"\]\n((?:.+\n)*)',
        (ROOT / "pyproject.toml").read_text(),
    )
    points = dict(re.findall(r'(\w+) = "(.+)"\n', section))
    assert points == {name: registry.hosts()[name].__module__ + ":HOST" for name in points}
    assert {resolve_name(place).module: place for place in points.values()} == HOSTS
    folders = {path.parent.name for path in (ROOT / "elip_plugin" / "hosts").glob("*/__init__.py")}
    assert folders == {*points}
    # A host is registered when it is imported, unless it has nothing to register.
    for host in map(resolve_name, HOSTS.values()):
        assert (host.module in AT_IMPORT) == (type(host).register is not Host.register)


def test_importing_the_package_imports_no_host() -> None:
    code = (
        "import sys, elip_plugin; from elip_plugin import *; "
        "print([m for m in ('open_clip', 'lavis', 'timm') if m in sys.modules])"
    )
    assert python("-c", code).stdout.strip() == "[]"


@pytest.mark.slow
def test_open_clip_knows_the_models_without_our_import() -> None:
    pytest.importorskip("open_clip")
    assert python("-c", LISTED).stdout.strip() == "True"
    assert python("-I", "-c", LISTED).stdout.strip() == "True"


@pytest.mark.slow
@pytest.mark.newest
def test_switched_off_and_on_again() -> None:
    pytest.importorskip("open_clip")
    assert python("-c", LISTED, ELIP_AUTOLOAD="0").stdout.strip() == "False"
    by_hand = "import elip_plugin; elip_plugin.list_models(); "
    assert python("-c", by_hand + LISTED, ELIP_AUTOLOAD="0").stdout.strip() == "True"


@pytest.mark.slow
@pytest.mark.newest
def test_our_own_module_may_be_the_first_to_import_the_host() -> None:
    pytest.importorskip("open_clip")
    out = python("-c", "import elip_plugin.hosts.open_clip.models; " + LISTED)
    assert out.stdout.strip() == "True", out.stderr
    assert "could not register" not in out.stderr


@pytest.mark.slow
@pytest.mark.newest
def test_child_processes_know_the_models(tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    script = tmp_path / "spawned.py"
    script.write_text(
        "import multiprocessing as mp, open_clip\n"
        "def listed(_): return 'elip-ViT-B-16' in open_clip.list_models()\n"
        "if __name__ == '__main__':\n"
        "    with mp.get_context('spawn').Pool(1) as pool: print(pool.map(listed, [0]))\n"
    )
    assert python(str(script)).stdout.strip() == "[True]"


@pytest.mark.slow
@pytest.mark.newest
def test_a_failing_registration_warns_and_leaves_the_host_usable() -> None:
    pytest.importorskip("open_clip")
    listed = "import open_clip; print(len(open_clip.list_models()) > 50)"
    broken = "import sys; sys.modules['elip_plugin.hosts.open_clip.names'] = None; "
    out = python("-c", broken + listed)
    assert out.stdout.strip() == "True"
    assert "could not register with open_clip" in out.stderr
    assert "ELIP_AUTOLOAD=0" in out.stderr
    out = python("-c", listed, ELIP_MODEL_CONFIGS="/no/such/folder")  # which is left out
    assert out.stdout.strip() == "True"
    assert "left out, /no/such/folder is no model config ([Errno 2] No such" in out.stderr


def test_installing_twice_adds_one_finder() -> None:
    from elip_plugin.hosts import autoload

    autoload.install()
    autoload.install()
    assert sum(isinstance(f, autoload.PostImportFinder) for f in sys.meta_path) == 1


def stand_ins(folder: Path, prepare: str = "print('prepare')") -> str:
    """Write a LAVIS and a host for it that only print; return a script's head."""
    (folder / "lavis.py").write_text("print('host')")
    (folder / "described.py").write_text(
        f"class HOST:\n    def prepare(): {prepare}\n    def register(): print('register')\n"
        "    def check_versions(): pass\n"
    )
    return "from elip_plugin.hosts import autoload\nautoload.HOSTS['lavis'] = 'described:HOST'\n"


def test_a_host_is_prepared_before_and_registered_after_its_import(tmp_path: Path) -> None:
    script = tmp_path / "start.py"
    script.write_text(
        stand_ins(tmp_path) + "import lavis, importlib; importlib.import_module('lavis')"
    )
    assert python(str(script)).stdout.split() == ["prepare", "host", "register"]


def test_a_host_imported_earlier_is_prepared_late(tmp_path: Path) -> None:
    script = tmp_path / "start.py"
    script.write_text("import lavis\n" + stand_ins(tmp_path) + "autoload.install()")
    out = python(str(script), ELIP_AUTOLOAD="0")
    assert out.stdout.split() == ["host", "prepare", "register"]


def test_a_failing_preparation_warns_and_lets_the_import_go_on(tmp_path: Path) -> None:
    script = tmp_path / "start.py"
    script.write_text(stand_ins(tmp_path, "raise RuntimeError('broken')") + "import lavis")
    out = python(str(script))
    assert out.stdout.split() == ["host", "register"]
    assert "could not prepare the libraries of lavis" in out.stderr
    assert "RuntimeError: broken (set ELIP_AUTOLOAD=0 to turn this off)" in out.stderr


def test_our_hook_runs_after_a_hosts_module(tmp_path: Path) -> None:
    """As for `open_clip_train.scheduler`; a failure warns and the module stays usable."""
    (tmp_path / "lavis.py").write_text("made = 1")
    (tmp_path / "hook.py").write_text("def install(module): module.made += 1")
    (tmp_path / "broken.py").write_text("def install(module): raise RuntimeError('broken')")
    out = []
    for hook in ("hook", "broken"):
        script = tmp_path / "start.py"
        script.write_text(
            "from elip_plugin.hosts import autoload\n"
            f"del autoload.HOSTS['lavis']; autoload.HOOKS['lavis'] = '{hook}'\n"
            "import lavis; print(lavis.made)"
        )
        out.append(python(str(script)))
    assert [done.stdout.strip() for done in out] == ["2", "1"]
    assert "could not register with lavis" in out[1].stderr


@pytest.mark.parametrize("broken", ["raise RuntimeError('broken')", "import no_such_module"])
def test_the_start_up_line_never_breaks_an_import(tmp_path: Path, broken: str) -> None:
    (tmp_path / "elip_plugin.py").write_text(broken)
    (tmp_path / "open_clip.py").write_text("print('imported')")
    line = (ROOT / "elip.pth").read_text()
    script = tmp_path / "start.py"  # twice, as in a venv
    script.write_text(f"{line}\n{line}\nimport open_clip")
    out = python("-S", str(script))
    assert out.stdout.strip() == "imported"
    assert "elip_plugin was not loaded" in out.stderr and "Traceback" not in out.stderr


def test_a_missing_host_is_still_missing(tmp_path: Path) -> None:
    script = tmp_path / "start.py"
    line = (ROOT / "elip.pth").read_text()
    script.write_text(f"import sys; sys.path.append({str(ROOT)!r})\n{line}\nimport open_clip")
    out = python("-S", str(script))
    assert "ModuleNotFoundError: No module named 'open_clip'" in out.stderr
    assert "elip.pth" not in out.stderr


@pytest.mark.slow
@pytest.mark.newest
def test_the_wheel_carries_the_hook_and_works(tmp_path: Path) -> None:
    """Build, install into an empty environment, and look at what start-up does there."""
    import venv
    import zipfile

    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"elip.pth", "elip.start", "elip_plugin/__init__.py"} <= {*names}
    venv.create(tmp_path / "env", with_pip=True)
    inside = str(tmp_path / "env" / "bin" / "python")
    install = [inside, "-m", "pip", "install", "-q", "--no-deps", str(wheel)]
    subprocess.run(install, check=True)
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "open_clip.py").write_text("print('a stand-in host')")  # registering fails: warned
    code = "import sys, open_clip; print('elip_plugin' in sys.modules)"
    out = subprocess.run([inside, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split("\n")[:2] == ["a stand-in host", "True"]
    assert "could not register with open_clip" in out.stderr
