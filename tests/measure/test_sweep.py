"""`elip bench gpu` at a toy size: its log, its limits, its report."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from entry_points import elip

from elip_plugin.errors import ConfigError, DataError
from elip_plugin.measure import sweep as module
from elip_plugin.measure.speed import Row, Setting
from elip_plugin.measure.sweep import Measurement, Outcome, Sweep, measurements, run_sweep
from elip_plugin.measure.sweep_report import write_report

TOY = Sweep("elip-ViT-tiny-6", 2, "cpu", ("full", "fast"), rounds=1, image_size=32)
DEVICE = {"names": ["A Card"] * 4, "memory": [2**30] * 4, "torch": "2", "cuda": "12"}


def result() -> dict[str, Any]:
    setting = Setting("ViT", 2, "A Card", 1, "bf16", False, "fused", 1, "2", 32, True)
    made = [
        Row(variant, measured, seconds, seconds, seconds, seconds, 10, 2**30)
        for measured in ("tower", "step")
        for variant, seconds in (("full", 1.0), ("fast", 0.7))
    ]
    parts = {"text": 0.1, "optimizer": 0.1, "loader": None, "workers": 4}
    return {"setting": asdict(setting), "rows": [asdict(row) for row in made], "parts": parts}


def test_what_is_measured() -> None:
    made = {m.name: m.command for m in measurements(replace(TOY, data="pics"), DEVICE)}
    assert {"bf16", "fp32", "bf16 compiled", "bf16 plain attention", "memory bf16"} <= {*made}
    assert [name for name in made if "processes" in name] == [f"{n} processes" for n in (1, 2, 4)]
    assert "--nproc-per-node=4" in made["4 processes"] and "--data" in made["bf16"]
    one = [m.name for m in measurements(TOY, {"names": ["A Card"]})]
    assert not [name for name in one if "processes" in name]


def fake(monkeypatch: pytest.MonkeyPatch, scripts: dict[str, str]) -> None:
    """Let each measurement be a short script; it gets --out and a folder."""
    made = [Measurement(n, ("-c", text), "speed.json") for n, text in scripts.items()]
    monkeypatch.setattr(module, "measurements", lambda *_: iter(made))
    device = Measurement("device", ("-c", f"print({json.dumps(json.dumps(DEVICE))})"))
    monkeypatch.setattr(module, "_device", lambda _: device)


WRITE = (
    "import sys, pathlib; out = pathlib.Path(sys.argv[-1]); out.mkdir(exist_ok=True); "
    f"(out / 'speed.json').write_text({json.dumps(json.dumps(result()))})"
)
BREAK = "raise RuntimeError('CUDA out of memory. Tried to allocate')"


def test_an_end_is_recorded_and_the_next_call_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scripts = {"a": WRITE, "b": BREAK, "c": "raise SystemExit('broken')"}
    fake(monkeypatch, scripts)
    found = run_sweep(TOY, tmp_path)
    statuses = {name: outcome.status for name, outcome in found.items()}
    assert statuses == {"device": "done", "a": "done", "b": "out of memory", "c": "failed"}
    assert "broken" in found["c"].message
    log = tmp_path / module.LOG
    log.write_text(log.read_text() + '{"name": "d", "sta')  # a kill in the middle of a line
    fake(monkeypatch, {**scripts, "a": "raise SystemExit('again')", "c": WRITE})
    again = run_sweep(TOY, tmp_path)
    assert again["a"].result == found["a"].result and again["c"].status == "done"
    assert run_sweep(TOY, tmp_path)["c"].status == "done"
    with pytest.raises(DataError, match="another sweep"):
        run_sweep(replace(TOY, batch=3), tmp_path)


def test_a_time_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake(monkeypatch, {"slow": "import time; time.sleep(60)", "next": WRITE})
    monkeypatch.setattr(module, "LONGEST", 0.5)
    monkeypatch.setattr(module, "SHORTEST", 0.1)
    assert run_sweep(TOY, tmp_path)["slow"].status == "took too long"
    monkeypatch.setattr(module, "SHORTEST", 1.0)
    assert run_sweep(TOY, tmp_path)["slow"].status.startswith("not started")
    with pytest.raises(ConfigError, match="minutes must be above 0"):
        run_sweep(TOY, tmp_path, minutes=0)


def test_the_report_names_the_card_and_every_outcome(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    scaling = [
        Outcome(f"{n} processes", "done", 1, {"processes": n, "batch": 2, "seconds": {"full": 1.0}})
        for n in (1, 2)
    ]
    fit = {"variant": "full", "batch": 8, "predicted": 9, "per_pair": 1, "measured": True}
    outcomes = [
        Outcome("device", "done", 1, DEVICE),
        Outcome("bf16", "done", 1, result()),
        Outcome("fp32", "out of memory", 1, {}, "CUDA out of memory | here"),
        Outcome("memory bf16", "done", 1, {"budget": 2**30, "precision": "bf16", "fits": [fit]}),
        *scaling,
    ]
    text = write_report(TOY, {o.name: o for o in outcomes}, tmp_path).read_text()
    assert "on 4 x A Card" in text and "| full | 8 | 9 |" in text
    assert "0.700 (0.70 to 0.70)" in text and "| 2 | 1.00 s | 4.0 |" in text
    assert "| fp32 | out of memory | 1 s | CUDA out of memory / here |" in text
    assert {p.name for p in tmp_path.glob("*.png")} == {"speed.png", "scaling.png"}


def test_no_gpu_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match=r"no GPU was found.*--device cpu --toy"):
        run_sweep(replace(TOY, device="cuda"), tmp_path)


@pytest.mark.slow
def test_the_command_at_a_toy_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("open_clip")
    pytest.importorskip("matplotlib")
    every = module.measurements  # without the compiled ones, which take minutes on a CPU
    monkeypatch.setattr(
        module, "measurements", lambda *a: (m for m in every(*a) if "compile" not in m.name)
    )
    elip(
        f"bench gpu --model {TOY.model} --toy --device cpu --variants full,fast --processes 2 "
        f"--minutes 10 -o {tmp_path}"
    )
    lines = [json.loads(line) for line in (tmp_path / module.LOG).read_text().splitlines()][1:]
    failed = {line["name"]: line["message"] for line in lines if line["status"] != "done"}
    assert failed == {}
    assert "2 processes" in {line["name"] for line in lines}
    assert sys.executable not in (tmp_path / "report.md").read_text()
