"""`elip doctor` finds what is wrong, and names the command that fixes it."""

from __future__ import annotations

import os
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import elip_plugin
from elip_plugin.cli import doctor
from elip_plugin.cli.main import app


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """What is installed, by a table that tests may change; the modules are empty files."""
    for module in ("open_clip", "lavis", "transformers"):
        (tmp_path / f"{module}.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("ELIP_AUTOLOAD", "1")
    versions = {"torch": "2.13.0", "open_clip_torch": "3.3.0", "salesforce-lavis": "1.0.2"}
    versions |= {"timm": "0.4.12", "transformers": "4.26.1"}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    return versions


def fixes() -> dict[str, str]:
    return {f.about: f.fix for f in doctor.check_environment() if f.fix}


def test_all_is_well_here() -> None:
    """In the environments that the tests run in, with the hosts really imported."""
    result = CliRunner().invoke(app, ["doctor"])
    output = " ".join(result.output.split())
    assert result.exit_code == 0 and "autoload on" in output and "anyvit" not in output, output


@pytest.mark.newest
def test_what_is_missing_or_old(installed: dict[str, str]) -> None:
    installed["open_clip_torch"] = "2.20.0"
    installed["torch"] = "2.3.1+cu121"
    del installed["salesforce-lavis"]  # no fault: a host is only needed by those who use it
    assert fixes() == {
        "torch": "pip install -U 'torch>=2.4'",
        "open_clip": "pip install 'elip-plugin[open-clip]'",
    }
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 1


@pytest.mark.parametrize(
    ("change", "fix"),
    [
        ({}, "pip install 'numpy<2'"),
        ({"transformers": "5.1.0"}, "pip install 'transformers<5'"),
        ({"timm": "1.0.31"}, "pip install 'elip-plugin[lavis]'"),
    ],
)
@pytest.mark.newest
def test_a_host_that_does_not_import(
    change: dict[str, str], fix: str, installed: dict[str, str], tmp_path: Path
) -> None:
    installed.update(change)
    broken = "raise ImportError('numpy.core.multiarray failed to import')"
    (tmp_path / "lavis.py").write_text(broken)
    output = " ".join(CliRunner().invoke(app, ["doctor"]).output.split())
    assert "does not import" in output and "multiarray" in output
    assert output.count("fix: ") == 1 and "".join(fix.split()) in "".join(output.split())


@pytest.mark.newest
def test_a_crash_of_a_host_is_a_finding(installed: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "open_clip.py").write_text("import os; os._exit(11)")
    (fault,) = (f for f in doctor.check_environment() if f.about == "open_clip")
    assert "3.3.0 does not import: exit code 11" in fault.text and fault.fix


@pytest.mark.newest
def test_optional_packages_and_this_one_are_named(installed: dict[str, str]) -> None:
    installed["onnx"] = "1.19.0"
    found = {finding.about: finding for finding in doctor.check_environment()}
    assert found["onnx"].text == "1.19.0" and not found["openvino"].fix
    assert "pip install 'elip-plugin[export]'" in found["openvino"].text
    assert found["elip-plugin"].text == elip_plugin.__version__
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for extra, names in doctor.OPTIONAL.items():
        (line,) = re.findall(rf"^{extra} = \[(.+)\]$", project, re.M)
        listed = {re.split("[>=]", name)[0] for name in re.findall(r'"([^"]+)"', line)}
        assert listed - {"torch"} == {*names}


def test_autoload_that_is_off(installed: dict[str, str], monkeypatch: Any, tmp_path: Any) -> None:
    monkeypatch.setenv("ELIP_AUTOLOAD", "0")
    monkeypatch.setattr(doctor, "hosts", dict)
    assert fixes() == {"autoload": "unset ELIP_AUTOLOAD"}
    monkeypatch.delenv("ELIP_AUTOLOAD")
    monkeypatch.setattr(doctor.sysconfig, "get_paths", lambda: {"purelib": str(tmp_path)})
    assert "force-reinstall" in fixes()["autoload"]
    (tmp_path / "elip.pth").write_text("... in ('open_clip',) ...")  # of an older version
    assert "force-reinstall" in fixes()["autoload"]
