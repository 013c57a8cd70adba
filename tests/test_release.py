"""What a release says of itself agrees: version, citation, changelog, licenses, Python versions."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import elip_plugin

ROOT = Path(__file__).parents[1]
FAMILIES = ("mit", "mpl", "bsd", "apache", "python software foundation", "cc-by-sa")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return found


def rows() -> dict[str, tuple[set[str], str]]:
    """Return extras and license by package, as the page lists them."""
    text = (ROOT / "docs" / "licenses.md").read_text().partition("## Dependencies")[2]
    found = re.findall(r"^\| ([\w-]+) \| (always|`.+?`) \| (.+) \|$", text, re.MULTILINE)
    return {name: (set(re.findall(r"`(.+?)`", extras)), license) for name, extras, license in found}


def installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def test_the_version_is_the_same_everywhere() -> None:
    version = elip_plugin.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    changes = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert next(change for change in changes if change != "Unreleased") == version


def test_all_dependencies_have_their_license_listed(project: dict[str, Any]) -> None:
    asked: dict[str, set[str]] = {}
    listed = {"": project["project"]["dependencies"], **project["project"]["optional-dependencies"]}
    del listed["test"]  # for those who work on it
    for extra, requirements in listed.items():
        for requirement in map(Requirement, requirements):
            asked.setdefault(requirement.name, set()).add(extra)
    del asked["elip-plugin"]  # `all` is made of the other extras
    always = {name: set() if "" in extras else extras for name, extras in asked.items()}
    assert {name: extras for name, (extras, _) in rows().items()} == always


@pytest.mark.parametrize("name", [name for name in rows() if installed(name)])
def test_a_license_is_that_of_the_installed_package(name: str) -> None:
    found = metadata.metadata(name)
    licenses = [found.get("License-Expression"), found.get("License")]
    licenses += [c for c in found.get_all("Classifier", []) if c.startswith("License")]
    said = " ".join(text for text in licenses if text and text != "UNKNOWN").lower()
    listed = rows()[name][1].lower()
    if not said:
        assert listed.endswith("*")
    else:
        assert [family for family in FAMILIES if family in said and family in listed], said


def test_the_start_files_are_all_that_lies_beside_the_package(project: dict[str, Any]) -> None:
    """What check-wheel-contents is told to accept."""
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    beside = {place for place in wheel["force-include"].values() if "/" not in place}
    assert beside == {"elip.pth", "elip.start"}


def test_the_makefile_takes_the_pythons_of_the_classifiers(project: dict[str, Any]) -> None:
    classifiers = " ".join(project["project"]["classifiers"])
    makefile = (ROOT / "Makefile").read_text()
    searched = re.search(r"^PYTHON \?= .*$", makefile, re.MULTILINE)
    assert searched is not None
    named = set(re.findall(r"python(3\.\d+)", searched[0]))
    assert named == set(re.findall(r"Python :: (3\.\d+)", classifiers))
    assert project["project"]["requires-python"] == ">=3.10" and "3.10" in named
