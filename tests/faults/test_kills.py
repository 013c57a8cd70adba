"""Kill -9: what is half-written is never taken for whole, and after a restart all goes on."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TINY
from faults.stopping import digests, kill_after, kill_in_file, moments, status_of

import elip_plugin
from benchmarks.faults.counting import is_long, tried
from elip_plugin.files import UNFINISHED, write_text

KILLS = 20 if is_long() else 2
STAGES = [{"block": 1, "lookahead": 1, "keep": 0.5}]
SCHEDULE = {"reducer": "tome", "stages": STAGES, "warmup": 0.4, "final_unpruned": 0.2}

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a forked process has no GPU")


# Commands that write files.


def run_command(*words: str) -> None:
    from elip_plugin.cli.main import app

    app([*words], standalone_mode=False)


def write_plan(folder: Path, kind: str) -> None:
    pytest.importorskip("open_clip")
    preset = "fast" if kind == "new" else "paper"
    for suffix in "yaml", "json":
        out = str(folder / f"plan.{suffix}")
        run_command("plan", "--model", "ViT-tiny", "--plan", preset, "-o", out)


def write_picture(folder: Path, kind: str) -> None:
    pytest.importorskip("open_clip")
    from PIL import Image

    picture = folder.parent / "picture.png"
    Image.new("RGB", (70, 64), (80, 40, 90 if kind == "new" else 200)).save(picture)
    out = str(folder / "shown.html")
    run_command("show", "--model", "elip-half-ViT-tiny-6", "--image", str(picture), "-o", out)


def write_speed(folder: Path, kind: str) -> None:
    pytest.importorskip("open_clip")
    from elip_plugin.measure.report import write_files
    from elip_plugin.measure.speed import Row, Setting

    values = dict.fromkeys(Setting.__dataclass_fields__, kind)
    row = dict.fromkeys(Row.__dataclass_fields__, 0.5)
    texts = {name: kind for name in ("measured", "variant")}
    write_files(folder, Setting(**values), [Row(**{**row, **texts})])


WRITERS: dict[str, Callable[[Path, str], None]] = {
    "elip plan": write_plan,
    "elip show": write_picture,
    "elip bench speed": write_speed,
}


@pytest.mark.parametrize("name", WRITERS)
def test_in_the_middle_of_each_file(name: str, tmp_path: Path) -> None:
    """Each file is the old or the new one, bit for bit, and writing again leaves the new ones."""
    write, contents = WRITERS[name], {}
    for kind in "old", "new":
        (folder := tmp_path / kind / "out").mkdir(parents=True)
        write(folder, kind)  # here, so that a process that is forked need import nothing
        contents[kind] = digests(folder)
    assert contents["old"].keys() == contents["new"].keys()
    assert all(contents["new"][file] != digest for file, digest in contents["old"].items())
    for number in range(len(contents["new"])):
        folder = tmp_path / str(number) / "out"
        shutil.copytree(tmp_path / "old" / "out", folder)
        assert kill_in_file(number, folder, lambda folder=folder: write(folder, "new"))
        found = digests(folder)
        left = [file for file in found if file.endswith(UNFINISHED)]
        for file, digest in contents["old"].items():
            assert found[file] in (digest, contents["new"][file]), file
        assert len(left) == 1 and found.keys() - {*left} == contents["old"].keys()
        write(folder, "new")
        assert {k: v for k, v in digests(folder).items() if k not in left} == contents["new"]
        tried("kill -9 in the middle of a file")


def test_a_link_and_a_pipe_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    reading = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_text(tmp_path / "pipe", "piped")
    assert os.read(reading, 9) == b"piped" and (tmp_path / "pipe").is_fifo()
    os.close(reading)
    assert len([*tmp_path.iterdir()]) == 3


@pytest.fixture
def few_emojis(monkeypatch: pytest.MonkeyPatch) -> int:
    pytest.importorskip("resvg_py")
    pytest.importorskip("emoji")
    from examples.openmoji import writing as openmoji

    found = openmoji.find_emojis()[0]
    some = found[:: len(found) // 24][:24]
    monkeypatch.setattr(openmoji, "find_emojis", lambda: (some, 0))
    return len(some)


def test_a_data_set(tmp_path: Path, few_emojis: int) -> None:
    """A list of pairs is there only if all its files are; a restart removes what is left lying."""
    from examples.openmoji import write_openmoji

    def write(folder: Path) -> None:
        write_openmoji(folder, size=32, held_out=5, overwrite=folder.exists())

    began = time.monotonic()
    assert status_of(lambda: write(tmp_path / "whole")) == 0
    seconds = time.monotonic() - began
    whole = digests(tmp_path / "whole")

    def check(folder: Path) -> None:
        found = digests(folder) if folder.exists() else {}
        kept = {file: d for file, d in found.items() if not file.endswith(UNFINISHED)}
        assert all(whole[file] == digest for file, digest in kept.items())
        if "train.json" in kept:
            assert kept.keys() >= whole.keys() - {"held_out.json"}
        assert status_of(lambda: write(folder)) == 0
        assert digests(folder) == whole

    numbers = range(len(whole)) if is_long() else (0, 1, 15, len(whole) - 2, len(whole) - 1)
    for number in numbers:
        folder = tmp_path / f"file {number}"
        assert kill_in_file(number, folder, lambda folder=folder: write(folder))
        check(folder)
        tried("kill -9 in the middle of a file")
    for i, moment in enumerate(moments(KILLS, seconds)):
        folder = tmp_path / f"moment {i}"
        kill_after(moment, lambda folder=folder: write(folder))
        check(folder)
        tried("kill -9 of elip data")


# Trainings, by the hosts' own commands. What they do not write at once they may lose.


def assert_goes_on(name: str, run: Callable[[Path], None], end: Any, folder: Path) -> None:
    """Kill at random moments, twice in a row as well; the end is that without a kill, bit for bit.

    `end` reads what the training has written at its end.
    """
    began = time.monotonic()
    assert status_of(lambda: run(folder / "whole")) == 0
    seconds = time.monotonic() - began
    expected = end(folder / "whole")
    assert expected
    killed = 0
    for i, moment in enumerate(moments(KILLS, seconds)):
        out = folder / str(i)
        killed += kill_after(moment, lambda out=out: run(out))
        if i % 2:
            kill_after(moment / 2, lambda out=out: run(out))
        assert status_of(lambda out=out: run(out)) == 0
        found = end(out)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(found[key], value) if torch.is_tensor(value) else found[key] == value
    assert killed
    tried(f"kill -9 of {name}", killed)


EPOCHS, BATCHES = 5, 3


def train_open_clip(folder: Path) -> None:
    """OpenCLIP's command, on batches that do not depend on the time of day."""
    import open_clip_train.main as command

    generator = torch.Generator().manual_seed(3)
    batches = [
        (
            torch.randn(8, 3, 64, 64, generator=generator),
            torch.randint(1, 49000, (8, 24), generator=generator),
        )
        for _ in range(BATCHES)
    ]
    if hasattr(command, "create_task"):  # OpenCLIP 4
        batches = [dict(zip(("image", "text"), batch)) for batch in batches]

    class Loader(list[Any]):
        num_batches, num_samples = BATCHES, 8 * BATCHES

    fixed = SimpleNamespace(dataloader=Loader(batches), set_epoch=lambda epoch: None)
    command.get_data = lambda *args, **kwargs: {"train": fixed}
    words = [
        "--dataset-type",
        "synthetic",
        "--model",
        "ViT-killed",
        "--epochs",
        str(EPOCHS),
        "--warmup",
        "2",
        "--lr",
        "1e-3",
    ]
    words += ["--precision", "fp32", "--logs", str(folder), "--name", "run", "--batch-size", "8"]
    words += ["--resume", "latest", "--save-most-recent", "--save-frequency", "0"]
    command.main(words)


@pytest.mark.slow
def test_a_training_by_open_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("open_clip_train.main")
    import open_clip

    model = {**TINY, "vision_cfg": {**TINY["vision_cfg"], "layers": 4}, "elip": SCHEDULE}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-killed", model)
    monkeypatch.setattr(logging.root, "handlers", [])

    def end(folder: Path) -> dict[str, Any]:
        saved = torch.load(folder / "run" / "checkpoints" / "epoch_latest.pt")
        log = (folder / "run" / "out.log").read_text()
        last = log[log.rindex(f"Start epoch {EPOCHS - 1}") :]
        losses = [line.partition(" Loss: ")[2] for line in last.splitlines() if " Loss: " in line]
        return {**saved["state_dict"], "epoch": saved["epoch"], "losses": len(losses) > 0}

    assert_goes_on("a training by OpenCLIP's command", train_open_clip, end, tmp_path)


def train_transformers(folder: Path) -> None:
    """transformers' Trainer, from its newest checkpoint whose state, written last, can be read."""
    import transformers
    from hosts.transformers.test_transformers_trainer import train
    from hosts.transformers.tiny import make
    from transformers.trainer_callback import TrainerState

    transformers.logging.set_verbosity_error()
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    whole = None
    for path in found:
        try:
            TrainerState.load_from_json(str(path / "trainer_state.json"))
            whole = str(path)
        except (OSError, ValueError):
            shutil.rmtree(path)  # half-written by the Trainer
    model = make("clip")
    elip_plugin.apply(model, SCHEDULE)
    saving = {"save_strategy": "steps", "save_steps": 2}
    callbacks = [elip_plugin.TrainerCallback()]
    trainer = train(model, folder, callbacks, resume=whole, **saving)
    torch.save(trainer.model.state_dict(), folder / "end.pt")


@pytest.mark.slow
def test_a_training_by_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers", minversion="4.57")
    pytest.importorskip("accelerate")
    from hosts.transformers import test_transformers_trainer  # noqa: F401  # once for all processes

    def end(folder: Path) -> dict[str, Any]:
        return torch.load(folder / "end.pt")

    assert_goes_on("a training by transformers' Trainer", train_transformers, end, tmp_path)


def test_a_training_by_lavis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on after the last epoch that was saved, with the weights that were saved."""
    pytest.importorskip("lavis")
    import lavis_runs as runs

    from elip_plugin.hosts.lavis.compat import train

    monkeypatch.setattr("lavis.datasets.datasets.dataloader_utils.time.sleep", lambda _: None)
    data = tmp_path / "data"
    data.mkdir()
    runs.write_data(data)
    section = runs.model_section("elip_clip", data, elip=SCHEDULE)

    def checkpoints(folder: Path) -> list[Path]:
        found = (folder / "output").rglob("checkpoint_*.pth")
        return sorted(found, key=lambda path: int(path.stem.rpartition("_")[2]))

    def run(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        config = runs.write_config(folder / "run.yaml", section, data, max_epoch=4, test_splits=[])
        saved = checkpoints(folder)
        options = [f"run.resume_ckpt_path={saved[-1]}"] if saved else []
        if len(saved) < 4:
            train.run(config, options, evaluate=False)

    def end(folder: Path) -> dict[str, Any]:
        states = [torch.load(path) for path in checkpoints(folder)]
        assert all(torch.isfinite(v.float()).all() for v in states[-1]["model"].values())
        return {"epochs": [state["epoch"] for state in states], "names": [*states[-1]["model"]]}

    assert_goes_on("a training by LAVIS' runner", run, end, tmp_path)
