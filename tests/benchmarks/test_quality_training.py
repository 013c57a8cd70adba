"""The quality study trains: equal batches, controls, every family, the command."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

pytest.importorskip("scipy")
pytest.importorskip("rich")

import elip_plugin
from benchmarks.quality import cost, models, report, training
from benchmarks.quality.__main__ import app
from benchmarks.quality.pairs import Pairs, batches, read_pairs
from benchmarks.quality.recipe import RECIPES, Recipe
from benchmarks.quality.variants import VARIANTS, Variant
from elip_plugin.data.vocab import write_vocab

SMALL = Recipe(epochs=2, batch=4, width=32, depth=12, text_depth=1, pairs=10)
Splits = tuple[Pairs, Pairs]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Several threads are slower on models as small as these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `write_openmoji` writes it: 10 pairs to train on, 6 held out."""
    out = tmp_path_factory.mktemp("pairs")
    for split, places in (("train", range(10)), ("held_out", range(10, 16))):
        rows = []
        for i in places:
            colour = (17 * i % 256, 31 * i % 256, 101 * i % 256)
            Image.new("RGB", (64, 64), colour).save(out / f"{i}.png")
            rows.append({"image": f"{i}.png", "caption": f"colour {i}"})
        (out / f"{split}.json").write_text(json.dumps(rows))
    write_vocab([f"colour {i}" for i in range(10)], out / "vocab.txt")
    return out


@pytest.fixture
def splits(folder: Path) -> Splits:
    return read_pairs(folder, "train"), read_pairs(folder, "held_out")


def test_pairs_are_read(folder: Path) -> None:
    found = read_pairs(folder, "train", most=7)
    assert list(found.captions) == [f"colour {i}" for i in range(7)]
    assert found.pictures[3].getpixel((5, 5)) == (51, 93, 47)


def test_batches_depend_on_the_seed_alone(splits: Splits) -> None:
    train, _ = splits
    torch.manual_seed(1)
    one = list(batches(train, 4, 2, seed=5))
    torch.manual_seed(2)
    two = []
    for images, which in batches(train, 4, 2, seed=5):
        torch.rand(3)  # a variant that draws
        two.append((images, which))
    other = list(batches(train, 4, 2, seed=6))
    assert len(one) == 4 == SMALL.steps(len(train))
    for (a, i), (b, j) in zip(one, two):
        assert torch.equal(a, b) and torch.equal(i, j)
    assert any(not torch.equal(i, j) for (_, i), (_, j) in zip(one, other))
    assert not torch.equal(one[0][1], one[2][1])  # the epochs differ
    torch.manual_seed(1)
    drawn = torch.rand(3)
    torch.manual_seed(1)
    next(batches(train, 4, 2, seed=5))
    assert torch.equal(torch.rand(3), drawn)  # a variant's own stream goes on undisturbed


class Recorder:
    """A model that records its images and returns the sizes."""

    def __init__(self) -> None:
        self.model: Any = nn.Linear(1, 1)

    def loss(self, images: Tensor, which: Tensor, done: float) -> Tensor:
        return torch.tensor(images.shape[-1])


def test_the_coarse_phase_shows_smaller_images() -> None:
    model: Any = Recorder()
    images, which = torch.randn(2, 3, 64, 64), torch.tensor([0, 1])
    sides = [
        training.training_loss(model, Variant("", coarse=0.5), images, which, done).item()
        for done in (0.0, 0.49, 0.5, 0.9)
    ]
    assert sides == [48, 48, 64, 64]


@pytest.fixture
def clip(splits: Splits) -> models.StudyModel:
    pytest.importorskip("open_clip")
    torch.manual_seed(0)
    return models.create(SMALL, *splits)


def test_dropping_by_caption_keeps_the_same_for_the_same_pair(clip: models.StudyModel) -> None:
    variant = VARIANTS["random by caption"]
    assert variant.config is not None
    handle = elip_plugin.apply(clip.model, variant.config)
    images, before = torch.randn(3, 3, 64, 64), torch.rand

    def kept(*which: int) -> Tensor:
        with handle.trace() as trace:
            training.training_loss(clip, variant, images, torch.tensor(which), 0.0)
        return trace.stages[0].kept

    one, two = kept(4, 5, 6), kept(6, 4, 7)
    assert torch.equal(one[0], two[1]) and torch.equal(one[2], two[0])
    assert not torch.equal(one[0], one[1])
    assert torch.rand is before
    with pytest.raises(RuntimeError), training._control(clip, variant, torch.tensor([1])):
        raise RuntimeError
    assert torch.rand is before


def test_a_shuffled_guide_is_anothers_caption(
    clip: models.StudyModel, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    elip_plugin.apply(clip.model, "fast")
    given: list[Tensor] = []
    real: Callable[..., Any] = elip_plugin.guide
    monkeypatch.setattr(elip_plugin, "guide", lambda m, f: (given.append(f), real(m, f))[1])
    images, which = next(batches(splits[0], 4, 1, 0))
    shuffled = training.training_loss(clip, VARIANTS["fast shuffled"], images, which, 0.0)
    assert torch.equal(given[0], clip.guide(which).roll(1, 0))
    assert shuffled != training.training_loss(clip, VARIANTS["fast"], images, which, 0.0)


@pytest.mark.parametrize(
    "name", ["full", "fast", "random by caption", "fast by batch", "tome",
             "fast 0.36 warm + finish", "coarse + finish", "fast + anneal"]
)  # fmt: skip
def test_a_clip_trains_and_is_scored(name: str, splits: Splits) -> None:
    pytest.importorskip("open_clip")
    epochs: list[int] = []
    made = training.run(VARIANTS[name], SMALL, *splits, 3, lambda: epochs.append(1))
    assert len(made["losses"]) == len(epochs) == 2
    assert all(math.isfinite(loss) for loss in made["losses"])
    for scores in made["scores"].values():
        assert set(scores) == {"loss", "mrr", "i2t_r1", "i2t_r5", "t2i_r1", "t2i_r5"}
    assert made["scores"]["full"]["loss"] != made["scores"]["pruned"]["loss"]


def test_equal_seeds_give_equal_trainings_and_variants_share_their_start(splits: Splits) -> None:
    pytest.importorskip("open_clip")
    one, two = (training.run(VARIANTS["random"], SMALL, *splits, 3) for _ in range(2))
    assert one["losses"] == two["losses"] and one["scores"] == two["scores"]
    other = training.run(VARIANTS["random"], SMALL, *splits, 4)
    assert other["losses"] != one["losses"]
    finish = replace(VARIANTS["random"], elip={"reducer": "random", "final_unpruned": 1.0})
    full = training.run(VARIANTS["full"], SMALL, *splits, 3)
    assert training.run(finish, SMALL, *splits, 3)["losses"] == full["losses"]


@pytest.mark.parametrize("family", ["albef", "blip"])
def test_lavis_families_train_and_are_scored(family: str, splits: Splits) -> None:
    pytest.importorskip("lavis")
    recipe = replace(SMALL, family=family, epochs=1)
    losses = []
    for name in ("full", "fast", "fast shuffled"):
        made = training.run(VARIANTS[name], recipe, *splits, 0)
        losses.append(made["losses"][0])
        assert 0 < made["scores"]["full"]["mrr"] <= 1
    assert len(set(losses)) == 3
    with pytest.raises(ValueError, match="take one image size"):
        training.run(VARIANTS["coarse + finish"], recipe, *splits, 0)


def test_steps_are_timed_in_turn(splits: Splits) -> None:
    pytest.importorskip("open_clip")
    times = cost.time_phases(["full", "coarse + finish", "fast"], SMALL, splits[0], rounds=1)
    assert next(iter(times)) == "full" and times["full"]["ratio"] == 1
    assert set(times) == {"full", cost.COARSE, *cost.phases("fast")}


@pytest.mark.slow
def test_the_command(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("open_clip")
    monkeypatch.setitem(RECIPES, "clip", SMALL)
    arguments = ["--variants", "full,fast", "--seeds", "2", "--rounds", "1",
                 "--data", str(folder), "--out", str(tmp_path / "out"), "--jobs", "2"]  # fmt: skip
    first = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert first.exit_code == 0, first.output
    kept = (tmp_path / "out" / "quality.jsonl").read_text()
    assert len(kept.splitlines()) == 4
    assert "4 trainings, 0 of them done" in first.output
    assert "has learnt too little" not in first.output
    table = (tmp_path / "out" / "clip.md").read_text()
    assert "| fast | lookahead 1 | 0.72 |" in table
    assert json.loads((tmp_path / "out" / "clip-steps.json").read_text())["steps"]["full"]
    monkeypatch.setattr(report, "LEARNT", 1.1)
    again = CliRunner().invoke(app, [*arguments, "--rounds", "0"], catch_exceptions=False)
    assert "4 trainings, 4 of them done" in again.output
    assert "has learnt too little" in again.output
    assert (tmp_path / "out" / "quality.jsonl").read_text() == kept
    assert (tmp_path / "out" / "clip.md").read_text() == table


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--seeds", "-1"], "seeds"),
        (["--family", "coca"], "coca"),
        (["--variants", "fats"], "fats"),
    ],
)
def test_faults_of_the_command(arguments: list[str], named: str) -> None:
    made = CliRunner().invoke(app, arguments)
    assert made.exit_code == 2 and named in made.output


def test_the_list_names_all() -> None:
    shown = CliRunner().invoke(app, ["--list"], catch_exceptions=False).output
    assert "fast + finish" in shown and "leak: controls" in shown
