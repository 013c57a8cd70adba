"""The board at real size: the commands it builds, what it refuses, and a small run on the CPU."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("scipy")
pytest.importorskip("open_clip_train.params")

from benchmarks import results_log
from benchmarks.board import grid
from benchmarks.board.cost import Tower, count
from benchmarks.board.variants import REFERENCE, VARIANTS
from benchmarks.quality import large
from benchmarks.quality.__main__ import app
from benchmarks.quality.large import LargeRecipe

HALF = "random 0.5, end"
COUNTED = {"--train-data": "t.tar", "--train-num-samples": "1000"}


def recipe(**changed: Any) -> LargeRecipe:
    given: dict[str, Any] = {
        "model": "ViT-B-16", "config": large.base_config("ViT-B-16"), "train_data": "t.tar",
        "train_num_samples": 2_900_000, "val_data": "v.tar", "imagenet_val": "", "epochs": 8,
        "batch_size": 512, "warmup": 0.1, "precision": "amp_bf16", "device": "cuda",
        "processes": 1, "flags": (),
    }  # fmt: skip
    return LargeRecipe(**{**given, **changed})


def flags_of(command: Sequence[str]) -> dict[str, str]:
    return {a: b for a, b in pairwise(command) if a.startswith("--")}


def invoke(*arguments: str, code: int = 0, **options: str) -> str:
    given = [part for pair in {**COUNTED, **options}.items() for part in pair]
    made = CliRunner().invoke(app, ["large", *given, *arguments])
    assert made.exit_code == code, (made.output, made.exception)
    return " ".join(made.output.replace("│", "").split())


# -- counting and commands


def test_sizes_and_operations_of_real_towers() -> None:
    vision, text = large.towers(large.base_config("ViT-B-16"))
    assert (vision, text) == (Tower(197, 768, 12), Tower(77, 512, 12))
    assert count(VARIANTS[REFERENCE], vision, text) == 1
    half = count(VARIANTS["random 0.5"], vision, text)
    assert 0.5 < half < 0.65  # the text tower costs the same
    assert count(VARIANTS[HALF], vision, text) == pytest.approx(0.85 * half + 0.15)


def test_equal_operations_are_more_pairs_per_epoch() -> None:
    rows = grid.wanted(recipe(), [REFERENCE, HALF], grid.BUDGETS, [3])
    assert [(row["variant"], row["budget"]) for row in rows] == [
        (REFERENCE, "steps"), (HALF, "steps"), (HALF, "operations"),
    ]  # fmt: skip
    made = [flags_of(large.command(row, Path("runs"))) for row in rows]
    assert [flags["--train-num-samples"] for flags in made[:2]] == ["2900000"] * 2
    more = int(made[2]["--train-num-samples"])
    step = count(VARIANTS[HALF], *large.towers(recipe().config))
    assert more * step == pytest.approx(2_900_000, rel=1e-6)
    assert {flags["--epochs"] for flags in made} == {"8"}
    assert len({flags["--name"] for flags in made}) == 3
    assert made[0]["--warmup"] == str(round(0.1 * 8 * 5665))  # of 2.9 million by 512
    assert int(made[2]["--warmup"]) == pytest.approx(int(made[0]["--warmup"]) / step, rel=1e-3)
    assert all(flags["--seed"] == "3" and flags["--resume"] == "latest" for flags in made)
    assert "--imagenet-val" not in made[0]


def test_several_processes_share_the_steps() -> None:
    (row,) = grid.wanted(recipe(processes=4, flags=("--accum-freq", "2")), [HALF], ["steps"], [0])
    command = large.command(row, Path("runs"))
    module = command.index("open_clip_train.main")
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "4", "-m", "--"]
    assert command[2:module] == launcher
    assert command[-2:] == ["--accum-freq", "2"]
    assert flags_of(command)["--warmup"] == str(round(0.1 * 8 * 709))  # of 2.9 million by 4,096


def test_a_training_is_named_by_all_that_distinguishes_it() -> None:
    names = {
        flags_of(large.command(grid.training(made, HALF, "steps", 0), Path()))["--name"]
        for made in (recipe(), recipe(flags=("--lr", "1e-3")), recipe(train_data="u.tar"))
    }
    assert len(names) == 3


def test_the_config_of_a_variant(tmp_path: Path) -> None:
    for name in (REFERENCE, HALF):
        folder = large.write_config(grid.training(recipe(), name, "steps", 0), tmp_path)
    made = {path.stem: json.loads(path.read_text()) for path in folder.iterdir()}
    assert set(made) == {"ViT-B-16-unpruned", "ViT-B-16-random-0.5-end"}
    section = made["ViT-B-16-random-0.5-end"].pop("elip")
    assert section == VARIANTS[HALF].elip
    assert made["ViT-B-16-random-0.5-end"] == made["ViT-B-16-unpruned"] == recipe().config


# -- what is refused


@pytest.mark.parametrize(
    ("options", "flags", "named"),
    [
        ({"--variants": "text 0.5 shuffled; small, end"}, (), "'small, end'] have a control"),
        ({"--variants": "fats"}, (), "'fats'] are not known"),
        ({"--budgets": "epochs"}, (), "epochs"),
        ({"--model": "elip-ViT-B-16"}, (), "name its base model"),
        ({"--model": "RN50"}, (), "a ResNet"),
        ({"--model": "ViT-B-16-SigLIP"}, (), "timm_model_name"),
        ({"--model": "ViT-Q"}, (), "not known to OpenCLIP"),
        ({}, ("--seed", "4"), "--seed"),
        ({}, ("--train-num=4",), "--train-num"),
        ({}, ("--force-context-length", "32"), "counted operations"),
        ({}, ("--lock-image",), "counted operations"),
        ({}, ("--val-frequency", "0"), "no results"),
        ({"--val-data": ""}, (), "--imagenet-val"),
    ],
)
def test_faults(options: dict[str, str], flags: tuple[str, ...], named: str) -> None:
    given = {"--val-data": "v.tar", **options}
    assert named in invoke("--dry-run", "--", *flags, code=2, **given)


def test_an_unknown_flag_is_found_before_any_training(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        large.check_flags(["--lrr", "1"])
    assert "unrecognized arguments: --lrr" in capsys.readouterr().err


# -- the command


def write_shard(path: Path, pairs: int) -> None:
    """A webdataset shard of plain pictures."""
    with tarfile.open(path, "w") as shard:
        for i in range(pairs):
            picture = io.BytesIO()
            Image.new("RGB", (64, 64), (8 * i, 255 - 8 * i, 128)).save(picture, "PNG")
            for suffix, content in (("png", picture.getvalue()), ("txt", b"colour %d" % i)):
                member = tarfile.TarInfo(f"{i:04d}.{suffix}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))


def small(tmp_path: Path) -> dict[str, str]:
    """Options of a training of seconds."""
    write_shard(tmp_path / "train.tar", 16)
    return {
        "--train-data": str(tmp_path / "train.tar"), "--train-num-samples": "16",
        "--val-data": str(tmp_path / "train.tar"), "--model": "ViT-tiny", "--variants": HALF,
        "--epochs": "1", "--batch-size": "8", "--device": "cpu", "--precision": "fp32",
        "--out": str(tmp_path / "runs"),
    }  # fmt: skip


def test_a_dry_run_prints_the_default_grid(tmp_path: Path) -> None:
    options = {**small(tmp_path), "--variants": large.DEFAULT}
    printed = invoke("--dry-run", "--", "--workers", "1", **options)
    assert "5 trainings, 0 of them done" in printed
    assert printed.count("open_clip_train.main") == 5 == printed.count("--workers 1")
    assert f"ELIP_MODEL_CONFIGS={tmp_path / 'runs' / 'configs'}" in printed
    assert not (tmp_path / "runs" / large.LOG).exists()


@pytest.mark.slow
def test_two_variants_train_and_a_second_run_does_nothing(tmp_path: Path) -> None:
    options = {**small(tmp_path), "--budgets": "operations"}
    more = ("--", "--workers", "1", "--val-num-samples", "16")
    first = invoke(*more, **options)
    assert "2 trainings, 0 of them done" in first and "R@1" in first
    log = tmp_path / "runs" / large.LOG
    rows = results_log.read(log)
    assert [row["variant"] for row in rows] == [REFERENCE, HALF]
    step = count(VARIANTS[HALF], *large.towers(TINY))
    assert [row["train_num_samples"] for row in rows] == [16, round(16 / step)]
    for row in rows:
        assert 0 <= row["results"]["image_to_text_R@5"] <= 1 and row["results"]["epoch"] == 1
        assert row["seconds"] > 0 and row["operations"] == pytest.approx(1, abs=0.05)
    logs = {path.parent.name: path.read_text() for path in (tmp_path / "runs").glob("*/out.log")}
    pruned = {name for name, text in logs.items() if "ELIP prunes the vision tower" in text}
    assert len(logs) == 2 and [name.startswith("random") for name in pruned] == [True]
    before = log.read_bytes()
    assert "2 trainings, 2 of them done" in invoke(*more, **options)
    assert log.read_bytes() == before
    log.write_text(json.dumps(rows[0]) + "\n")  # stopped before the second was written
    invoke(*more, **options)
    again = results_log.read(log)[1]
    assert again["seconds"] is None and again["results"] == rows[1]["results"]


def test_a_training_that_fails_is_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command itself ends some faults with 0."""
    monkeypatch.setattr(large, "command", lambda *_: ["true"])
    row = grid.training(recipe(), HALF, "steps", 0)
    with pytest.raises(RuntimeError, match="before its last checkpoint"):
        large.run(row, tmp_path)
