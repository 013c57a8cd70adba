"""The start-up file in processes that have nothing to do with this package."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipapp
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = (
    "import json, sys; print(json.dumps([n for n in ('torch', 'elip_plugin') if n in sys.modules]))"
)
INSIDE = f"""
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
made = interpreters.create()
interpreters.run_string(made, {CODE!r})
interpreters.destroy(made)
{CODE}
"""


def said_by(*words: str) -> tuple[str, str]:
    made = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd="/")
    assert made.returncode == 0, made.stderr
    return made.stdout, made.stderr


@pytest.mark.parametrize("flags", ["-I", "-S", "-E", "-I -S -E", "-B -O", "-X dev", "-W error"])
def test_options_of_the_interpreter(flags: str) -> None:
    assert said_by(*flags.split(), "-c", CODE) == ("[]\n", "")


def test_a_zip_application(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__main__.py").write_text(CODE)
    zipapp.create_archive(tmp_path / "app", tmp_path / "app.pyz")
    assert said_by(str(tmp_path / "app.pyz")) == ("[]\n", "")


def test_a_subinterpreter() -> None:
    assert said_by("-c", INSIDE) == ("[]\n[]\n", "")


def test_a_package_that_is_gone_from_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    """The file is left of a removed package: hosts are imported, and what is missing is said."""
    shutil.copy(ROOT / "elip.pth", tmp_path)
    (tmp_path / "lavis.py").write_text("print('the host')")
    tmp_path.chmod(0o555)
    code = f"import site; site.addsitedir({str(tmp_path)!r}); import json, lavis"
    printed, said = said_by("-S", "-c", code)
    assert printed == "the host\n"
    assert "elip_plugin was not loaded" in said and said.count("\n") == 1
    tmp_path.chmod(0o755)
