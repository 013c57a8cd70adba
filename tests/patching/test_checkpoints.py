"""Loading checkpoints: tensors and plain values only, unless a file is trusted by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from elip_plugin.errors import DataError
from elip_plugin.patching.checkpoints import TRUST, load_checkpoint


class Runs:
    """An object whose unpickling runs code."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_tensors_and_plain_values_load(tmp_path: Path) -> None:
    state = {"model": {"w": torch.ones(2, 3)}, "epoch": 3, "config": {"a": [1, None, "x"]}}
    torch.save(state, tmp_path / "a.pt")
    loaded = load_checkpoint(tmp_path / "a.pt")
    assert torch.equal(loaded.pop("model")["w"], torch.ones(2, 3))
    assert loaded == {"epoch": 3, "config": {"a": [1, None, "x"]}}


def test_no_code_runs_unless_that_very_file_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, mark = tmp_path / "a.pt", tmp_path / "mark"
    torch.save({"x": Runs(mark)}, path)
    for other in ("", str(tmp_path), str(tmp_path / "b.pt"), "1"):
        monkeypatch.setenv(TRUST, other)
        with pytest.raises(DataError, match=f"(?s)a.pt .*mkdir.* set {TRUST}=.*a.pt"):
            load_checkpoint(path)
        assert not mark.exists()
    monkeypatch.setenv(TRUST, os.pathsep.join(["b.pt", str(path)]))
    load_checkpoint(path)
    assert mark.exists()


def test_files_that_are_none_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"checkpoint '.*none\.pt' is no file"):
        load_checkpoint(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("no weights")
    for trusted in (False, True):
        monkeypatch.setenv(TRUST, str(tmp_path / "text.pt") if trusted else "")
        with pytest.raises(DataError, match=r"text\.pt cannot be read as weights \(") as caught:
            load_checkpoint(tmp_path / "text.pt")
        assert (TRUST in str(caught.value)) is not trusted
