"""What each kept version made of small models, this one makes; see benchmarks/faults/kept.py."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

import elip_plugin
from benchmarks.faults import kept
from benchmarks.faults.counting import tried
from elip_plugin.reducers import reducers

FILES = sorted(kept.KEPT.rglob("*.npz"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_an_earlier_version(path: Any) -> None:
    host = path.stem
    pytest.importorskip(kept.HOSTS[host].package, minversion=kept.HOSTS[host].minimum)
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    about = json.loads(str(arrays["about"]))
    model, inputs = kept.rebuild(host, arrays, about["weights"])
    same_chance = torch.equal(kept.drawn(), torch.from_numpy(arrays["drawn"]))
    assert len(about["configs"]) > 5
    for case, config in about["configs"].items():
        if not same_chance and config and config["reducer"] in kept.DRAWN:
            continue
        found = kept.answer(kept.HOSTS[host], model, config, inputs)
        expected = torch.from_numpy(arrays[f"out.{case}"])
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7, msg=f"{path}: {case}")
        tried("kept answers")


def test_every_reducer_is_kept() -> None:
    """Where this version has been kept, as its release does at its end."""
    path = kept.KEPT / elip_plugin.__version__ / "open_clip.npz"
    if not path.exists():
        pytest.skip(f"{elip_plugin.__version__} is not released yet")
    with np.load(path) as file:
        configs = json.loads(str(file["about"]))["configs"]
    assert {each["reducer"] for each in configs.values() if each} >= {*reducers()}


def test_kept_files_are_small() -> None:
    for folder in {path.parent for path in FILES}:
        assert sum(path.stat().st_size for path in folder.iterdir()) < 500_000


def test_nothing_is_kept_of_a_changed_checkout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(kept, "KEPT", tmp_path)
    monkeypatch.setattr(kept, "changes", lambda: " M elip_plugin/config/checks.py\n")
    with pytest.raises(SystemExit, match=r"has changes.*\n M elip_plugin/config/checks.py"):
        kept.write(["open_clip"])
    assert not [*tmp_path.iterdir()]


def test_what_is_kept_is_never_written_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(kept, "KEPT", tmp_path)
    monkeypatch.setattr(kept, "changes", str)
    monkeypatch.setattr(kept, "keep", lambda host: {"a": np.zeros(1)})
    (made,) = kept.write(["numpy"], "1.0")
    before = made.read_bytes()
    with pytest.raises(SystemExit, match="has answers for numpy, which are never written again"):
        kept.write(["numpy"], "1.0")
    assert made.read_bytes() == before
