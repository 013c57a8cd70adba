"""`python -m benchmarks.machine` at a toy size: what it measures, its limits, its report."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from benchmarks.machine import sweep as module
from benchmarks.machine.loading import time_loading
from benchmarks.machine.memory import fit_batches, largest_batch
from benchmarks.machine.startup import measure_startup
from benchmarks.machine.sweep import Sweep, counts_up_to, measurements, run_sweep
from elip_plugin import create
from elip_plugin.errors import ConfigError, DataError
from elip_plugin.pictures import find_items

ROOT = Path(__file__).parents[2]


def run(command: str) -> str:
    from benchmarks.machine.__main__ import app

    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 0, result.exception
    return result.output


TOY = Sweep("elip-ViT-tiny-6", 2, "cpu", "full,fast", rounds=1, image_size=32)
GPUS = [("A Card", 81000 * 2**20), ("A Card", 80000 * 2**20)]


def test_what_is_measured() -> None:
    made = measurements(replace(TOY, data="pics"), GPUS * 2)
    assert {"bf16", "fp32", "bf16 compiled", "bf16 plain attention", "memory bf16"} <= {*made}
    assert [name for name in made if "processes" in name] == [f"{n} processes" for n in (1, 2, 4)]
    assert "--nproc-per-node=4" in made["4 processes"] and "--data" in made["loading"]
    assert "72000MiB" in made["memory bf16"]  # nine tenths of the smallest
    assert not [name for name in measurements(TOY, GPUS[:1]) if "processes" in name]


def test_every_measurement_is_a_command_with_known_options() -> None:
    import typer
    from torch.distributed.run import get_args_parser

    from benchmarks.machine.__main__ import app as machine
    from elip_plugin.cli.main import app

    for name, (_, program, *words) in measurements(replace(TOY, data="pics"), GPUS).items():
        if program == "torch.distributed.run":
            made = get_args_parser().parse_args(words)
            assert made.module, name
            program, words = made.training_script, made.training_script_args
        command: Any = typer.main.get_command(app if program == "elip_plugin" else machine)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        assert command.make_context(name, list(words)).params["model"] == TOY.model


@pytest.mark.parametrize(
    ("gpus", "counts"), [(1, []), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])]
)
def test_all_gpus_are_used(gpus: int, counts: list[int]) -> None:
    assert counts_up_to(gpus) == counts


def fake(monkeypatch: pytest.MonkeyPatch, scripts: dict[str, str]) -> None:
    """Let each measurement be a short script."""
    monkeypatch.setattr(
        module, "measurements", lambda *_: {n: ["-c", text] for n, text in scripts.items()}
    )
    monkeypatch.setattr(module, "find_gpus", lambda: GPUS)


BREAK = "raise RuntimeError('CUDA out of memory. Tried to allocate')"


def test_an_end_is_recorded_and_the_next_call_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scripts = {"a": "print('2 ms')", "b": BREAK, "c": "raise SystemExit('broken')"}
    fake(monkeypatch, scripts)
    report = run_sweep(replace(TOY, device="cuda"), tmp_path)
    text = report.read_text()
    statuses = dict(re.findall("^## (.): (.+)$", text, re.M))
    assert statuses == {"a": "done", "b": "out of memory", "c": "failed"}
    assert "1 x A Card, 79 GiB, 1 x A Card, 78 GiB" in text and "2 ms" in text and "broken" in text
    assert "Tried to allocate" in text
    fake(monkeypatch, {**scripts, "a": "print('again')", "c": "print('mended')"})
    text = run_sweep(replace(TOY, device="cuda"), tmp_path).read_text()
    assert "2 ms" in text and "again" not in text and "mended" in text
    with pytest.raises(DataError, match="another sweep"):
        run_sweep(replace(TOY, batch=3), tmp_path)


def test_what_a_kill_has_cut_short_is_measured_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake(monkeypatch, {"a": "print('first')", "b": "print('second')"})
    with monkeypatch.context() as patch:

        def kill(source: Path, target: Path, replace: Any = os.replace) -> None:
            if target.suffix == ".txt":
                raise KeyboardInterrupt
            replace(source, target)

        patch.setattr(os, "replace", kill)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(TOY, tmp_path)
    fake(monkeypatch, {"a": "print('again')", "b": "print('second')"})
    text = run_sweep(TOY, tmp_path).read_text()
    assert "again" in text and "second" in text and "first" not in text


def test_a_time_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake(monkeypatch, {"slow": "import time; time.sleep(60)", "next": "print()"})
    monkeypatch.setattr(module, "LONGEST", 1.0)
    monkeypatch.setattr(module, "SHORTEST", 0.1)
    assert "## slow: took too long" in run_sweep(TOY, tmp_path).read_text()
    monkeypatch.setattr(module, "SHORTEST", 2.0)
    assert "## slow: not started" in run_sweep(TOY, tmp_path).read_text()
    with pytest.raises(ConfigError, match="minutes must be above 0"):
        run_sweep(TOY, tmp_path, minutes=0)


def test_no_gpu_is_said(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match=r"no GPU was found.*--device cpu --toy"):
        run_sweep(replace(TOY, device="cuda"), tmp_path)


@pytest.mark.slow
def test_the_command_at_a_toy_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("open_clip")
    every = module.measurements  # one of each kind: the others differ in options

    def fewer(*given: Any) -> dict[str, list[str]]:
        kinds = ("bf16", "memory bf16", "2 processes", "bf16 plain attention")
        return {name: words for name, words in every(*given).items() if name in kinds}

    monkeypatch.setattr(module, "measurements", fewer)
    run(
        f"gpu --model {TOY.model} --toy --device cpu --variants full,fast --processes 2 "
        f"--minutes 10 -o {tmp_path}"
    )
    report = (tmp_path / "report.md").read_text()
    assert set(re.findall("^## .+: (.+)$", report, re.M)) == {"done"}, report
    assert "pairs per second" in report and "largest batch" in report
    assert "ratio to full (lowest-highest)" in report


def test_pruning_fits_more_pairs(tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    full, fast = fit_batches(create("ViT-tiny", device="meta"), 2**30, ["full", "fast"])
    assert fast.batch > 1.25 * full.batch
    said = run("memory --fit 1GiB --model ViT-tiny --device cpu --variants full")
    assert str(full.batch) in said and "predicted" in said
    (more,) = fit_batches(create("ViT-tiny", device="meta"), 2**30, ["full"], checkpointing=True)
    assert more.batch > full.batch


def test_doubling_finds_the_largest_batch_to_an_eighth() -> None:
    for most in (0, 1, 2, 3, 7, 100, 1000):
        tried: list[int] = []

        def fits(batch: int, most: int = most, tried: list[int] = tried) -> bool:
            tried.append(batch)
            return batch <= most

        found = largest_batch(fits)
        assert 0.87 * most <= found <= most
        assert max(tried) <= max(1, 2 * most)  # nothing much larger is ever run


@pytest.mark.slow
def test_runtimes_are_timed_beside_the_unpruned_tower(tmp_path: Path) -> None:
    """In a process of its own: one that loaded OpenVINO may crash where it starts others."""
    pytest.importorskip("openvino")
    words = "runtimes --model elip-ViT-tiny-6 --runtime torch,openvino --batch 3 --rounds 1 -o"
    command = [sys.executable, "-m", "benchmarks.machine", *words.split(), str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT)
    rows = json.loads((tmp_path / "runtimes.json").read_text())["rows"]
    assert [(row["runtime"], row["batch"], row["variant"]) for row in rows] == [
        (runtime, batch, variant)
        for runtime in ("torch", "openvino")
        for batch in (1, 3)
        for variant in ("full", "embed")
    ]
    assert {row["counted"] < 0.75 for row in rows if row["variant"] == "embed"} == {True}


@pytest.mark.slow
def test_the_start_up_file_is_measured() -> None:
    plain, quartiles = measure_startup(sys.executable, pairs=3)
    assert plain > 0 and quartiles == sorted(quartiles)


def test_the_store_is_measured(tmp_path: Path) -> None:
    code = "import sys; from benchmarks.machine.__main__ import app; app()"
    words = ["store", "--rows", "600", "--folder", str(tmp_path)]  # it lowers a limit for good
    made = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT
    )
    assert made.returncode == 0 and "600 rows: adding" in made.stdout, made.stderr


def test_loading_is_timed_on_pictures_that_are_listed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    items = find_items([tmp_path])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rglob", lambda *given: pytest.fail("the folder is listed anew"))
        assert time_loading(items, lambda image: torch.zeros(3, 8, 8), 4, 1, 2) > 0
    (tmp_path / "0.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"--data: 0\.png cannot be read"):
        time_loading(items, lambda image: torch.zeros(3, 8, 8), 4, 1, 2)
    (tmp_path / "0.png").unlink()
    assert re.match(r"a batch of 2 takes \d+\.\d{3} s with 1 workers", run(
        f"loading --model ViT-tiny --data {tmp_path} --batch 2 --workers 1 --rounds 1"
    ))  # fmt: skip
