"""The shell completes model names, without importing torch once they are listed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import elip_plugin
from elip_plugin.cli import completion

SUBPROCESS_RUN = subprocess.run


@pytest.fixture
def lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The processes that were started to list names; they find two."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    started: list[Any] = []

    def run(command: Any, **options: Any) -> Any:
        started.append(command)
        return SimpleNamespace(returncode=0, stdout="elip-A\nelip-fast-A\n")

    monkeypatch.setattr(completion.subprocess, "run", run)
    return started


def test_names_are_listed_once(lists: list[Any]) -> None:
    assert completion.complete_model("elip-f") == ["elip-fast-A"]
    assert completion.complete_model("") == ["elip-A", "elip-fast-A"]
    assert len(lists) == 1


def test_names_are_listed_anew_when_packages_or_configs_change(
    lists: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages, configs = tmp_path / "packages", tmp_path / "configs"
    packages.mkdir()
    configs.mkdir()
    monkeypatch.setattr(completion.sysconfig, "get_paths", lambda: {"purelib": str(packages)})
    completion.model_names()
    os.utime(packages, ns=(1, 1))
    completion.model_names()
    monkeypatch.setenv("ELIP_MODEL_CONFIGS", str(configs))
    completion.model_names()
    os.utime(configs, ns=(1, 1))
    completion.model_names()
    completion.model_names()
    assert len(lists) == 4


def test_a_folder_that_cannot_be_written_to(
    lists: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert completion.model_names() == completion.model_names() == ["elip-A", "elip-fast-A"]
    assert len(lists) == 2


def test_a_listing_that_fails_is_tried_again(
    lists: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        failed = SimpleNamespace(returncode=1, stdout="half")
        patch.setattr(completion.subprocess, "run", lambda *args, **options: failed)
        assert completion.model_names() == []
    assert completion.model_names() == ["elip-A", "elip-fast-A"]


@pytest.mark.parametrize("command", ["plan", "show", "bench speed"])
def test_the_shell_gets_names_without_torch(command: str, lists: list[Any], tmp_path: Path) -> None:
    completion.model_names()
    for name in ("torch", "open_clip"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')")
    words = f"elip {command} --model elip-f"
    made = SUBPROCESS_RUN(
        [sys.executable, str(Path(sys.executable).parent / "elip")],
        env={
            **os.environ,
            "PYTHONPATH": str(tmp_path),
            "_ELIP_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        },
        capture_output=True,
        text=True,
    )
    assert (made.stdout.split(), made.stderr) == (["elip-fast-A"], "")


@pytest.mark.slow
def test_the_real_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("open_clip")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert completion.model_names() == elip_plugin.list_models()
