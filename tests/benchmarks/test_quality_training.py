"""The quality study trains: equal batches, controls, every regime, the command."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

pytest.importorskip("scipy")
pytest.importorskip("open_clip")

import elip_plugin
from benchmarks import pool, results_log
from benchmarks.board import cost, training
from benchmarks.board.model import StudyModel
from benchmarks.board.pairs import Pairs, as_input, batches
from benchmarks.board.variants import REFERENCE, VARIANTS, Variant
from benchmarks.quality import grid, page
from benchmarks.quality import training as quality_training
from benchmarks.quality.__main__ import app
from benchmarks.quality.pairs import move
from benchmarks.quality.recipe import RECIPES, Recipe
from benchmarks.quality.scores import TEST_PLANS, evaluation, score
from elip_plugin import reducers as reducers_module

SMALL = Recipe(epochs=3, batch=4, width=32, depth=12, text_depth=1)
HALF = "random 0.5, end"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Several threads are slower on models as small as these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(names: range, each: int) -> Pairs:
    """Pictures of noise in their names' colours; each name has several."""
    generator = torch.Generator().manual_seed(names.start)
    captions = [f"colour {i}" for i in names for _ in range(each)]
    pictures = torch.randint(256, (len(captions), 3, 64, 64), generator=generator)
    return Pairs(pictures.to(torch.uint8), captions, move)


TRAIN, HELD_OUT = make(range(5), 2), make(range(5, 8), 2)
EVALUATION = evaluation(TRAIN, HELD_OUT)


def run(name: str, seed: int = 3, **changed: Any) -> dict[str, Any]:
    return training.run(VARIANTS[name], replace(SMALL, **changed), 6, TRAIN, EVALUATION, seed)


# -- batches


def test_batches_depend_on_seed_and_step_alone() -> None:
    torch.manual_seed(1)
    one = list(batches(TRAIN, 4, 6, seed=5))
    torch.manual_seed(2)
    two = []
    for images, which in batches(TRAIN, 4, 4, seed=5):
        torch.rand(3)  # a variant that draws
        two.append((images, which))
    other = list(batches(TRAIN, 4, 4, seed=6))
    for (a, i), (b, j) in zip(one, two):
        assert torch.equal(a, b) and torch.equal(i, j)
    assert any(not torch.equal(i, j) for (_, i), (_, j) in zip(one, other))
    assert sorted(torch.cat([one[0][1], one[1][1]]).tolist())[:2] != [0, 0]  # none twice an epoch
    assert not torch.equal(one[0][1], one[2][1])  # the epochs differ


def test_moving_leaves_white_white_and_keeps_the_size() -> None:
    generator = torch.Generator().manual_seed(0)
    assert move(torch.ones(2, 3, 64, 64), generator) == pytest.approx(torch.ones(2, 3, 64, 64))
    black = move(-torch.ones(2, 3, 64, 64), generator)
    assert black.shape == (2, 3, 64, 64) and black[:, :, 32, 32].eq(-1).all()
    assert black.max() == 1  # a corner that came in
    assert as_input(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]


# -- what a variant changes


class Recorder:
    """A model that records its images and returns the sizes."""

    def __init__(self) -> None:
        self.model: Any = nn.Linear(1, 1)

    def loss(self, images: Tensor, tokens: Tensor) -> Tensor:
        return torch.tensor(images.shape[-1])


def test_the_first_part_shows_smaller_pictures() -> None:
    model: Any = Recorder()
    images, tokens = torch.randn(2, 3, 64, 64), torch.zeros(2, 16)
    sides = [
        training.training_loss(model, Variant("", small_until=0.5), images, tokens, done).item()
        for done in (0.0, 0.49, 0.5, 0.9)
    ]
    assert sides == [32, 32, 64, 64]


@pytest.fixture
def model() -> StudyModel:
    return training.build(SMALL, EVALUATION, 0)


@pytest.fixture
def batch(model: StudyModel) -> tuple[Tensor, Tensor]:
    images, which = next(batches(TRAIN, 4, 1, 0))
    return images, model.tokenize([TRAIN.captions[row] for row in which.tolist()])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("text 0.5 shuffled", lambda guide: guide.roll(1, 0)),
        ("text 0.5 turned", lambda guide: -guide),
    ],
)
def test_controls_change_the_guide(
    name: str, change: Callable[[Tensor], Tensor], model: StudyModel,
    batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    elip_plugin.apply(model.model, VARIANTS[name].config)
    given: list[Tensor] = []
    real: Callable[..., Any] = elip_plugin.Handle.guide
    monkeypatch.setattr(
        elip_plugin.Handle, "guide", lambda handle, f: (given.append(f), real(handle, f))[1]
    )
    changed = training.training_loss(model, VARIANTS[name], *batch, 0.0)
    assert torch.equal(given[0], change(model.guide(batch[1])))
    assert changed != training.training_loss(model, VARIANTS["text 0.5 staged, end"], *batch, 0.0)


def test_another_pictures_choice(model: StudyModel, batch: tuple[Tensor, Tensor]) -> None:
    handle = elip_plugin.apply(model.model, VARIANTS["attention of another"].config)
    kept = []
    for name in ("attention staged, end", "attention of another"):
        with handle.trace() as trace:
            training.training_loss(model, VARIANTS[name], *batch, 0.0)
        kept.append(trace.stages[0].kept)
    assert torch.equal(kept[1], kept[0].roll(1, 0)) and not torch.equal(*kept)
    with handle.trace() as trace:  # nothing of the control is left
        training.training_loss(model, VARIANTS["attention staged, end"], *batch, 0.0)
    assert torch.equal(trace.stages[0].kept, kept[0])


# -- trainings


@pytest.mark.parametrize("name", [REFERENCE, "paper, end", "fast, warm, end", HALF, "tome, end",
                                  "evit staged, end", "small, end"])  # fmt: skip
def test_a_variant_trains_and_is_scored(name: str) -> None:
    parts: list[int] = []
    made = training.run(
        VARIANTS[name], SMALL, 6, TRAIN, EVALUATION, 3, progress=lambda: parts.append(1)
    )
    assert len(made["curve"]) == len(parts) == training.POINTS
    assert all(math.isfinite(point["loss"]) for point in made["curve"])
    assert set(made["scores"]) == {"all", *TEST_PLANS}
    assert made["curve"][-1]["mrr"] == made["scores"]["all"]["mrr"]
    losses = [scores["loss"] for scores in made["scores"].values()]
    assert len(set(losses)) > 1  # the plans at test time do prune


def test_equal_seeds_give_equal_trainings_and_variants_share_their_start() -> None:
    one, two = (run("random 0.5") for _ in range(2))
    assert one["curve"] == two["curve"] and one["scores"] == two["scores"]
    assert run("random 0.5", 4)["curve"] != one["curve"]
    unpruned = run(REFERENCE)
    never = replace(VARIANTS[HALF], elip={**(VARIANTS[HALF].elip or {}), "final_unpruned": 1.0})
    made = training.run(never, SMALL, 6, TRAIN, EVALUATION, 3)
    assert made["curve"] == unpruned["curve"] != one["curve"]


def test_scoring_changes_neither_the_model_nor_what_is_drawn(model: StudyModel) -> None:
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    model.model.train()
    first = score(model, HELD_OUT)
    pruned = score(model, HELD_OUT, TEST_PLANS["quarter by random"])
    assert score(model, HELD_OUT) == first != pruned
    assert model.model.training and type(model.model.visual.transformer).__module__ == (
        "open_clip.transformer"
    )
    assert all(torch.equal(before[name], v) for name, v in model.model.state_dict().items())


def test_continued_trainings_start_from_their_seeds_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality_training, "BASE", SMALL)
    path = tmp_path / "cache" / "base.pt"
    quality_training.train_base(path, TRAIN, HELD_OUT, TRAIN, 3)
    trained = training.build(SMALL, EVALUATION, 3, path).model.state_dict()
    fresh = training.build(SMALL, EVALUATION, 3).model.state_dict()
    assert trained.keys() == fresh.keys()
    assert not torch.equal(trained["visual.proj"], fresh["visual.proj"])
    assert [file.name for file in path.parent.iterdir()] == ["base.pt"]


def test_steps_are_timed_in_turn() -> None:
    times = cost.time_phases([REFERENCE, "small, end", "fast"], SMALL, TRAIN, rounds=1)
    assert next(iter(times)) == "full" and times["full"]["ratio"] == 1
    assert set(times) == {"full", cost.SMALL, *cost.phases(VARIANTS["fast"])}


# -- the command


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of the command, on small data and recipes."""
    monkeypatch.setattr(grid, "_pairs", lambda *a: TRAIN if a[1] == "train" else HELD_OUT)
    monkeypatch.setattr(pool, "ProcessPoolExecutor", _InThisProcess)
    monkeypatch.setattr(grid, "BASE", SMALL)
    monkeypatch.setattr(quality_training, "BASE", SMALL)
    for regime in RECIPES:
        monkeypatch.setitem(RECIPES, regime, replace(SMALL, regime=regime, epochs=2))
    folder = tmp_path / "data"
    folder.mkdir()
    return ["--data", str(folder), "--cache", str(tmp_path), "--out", str(tmp_path / "out")]


OWN = """
import elip_plugin
from elip_plugin.core.select import select
from elip_plugin.reducers import Reducer


@elip_plugin.register_reducer
class Longest(Reducer):
    name = "longest"

    def decide(self, x, stage, context):
        return select(x[:, context.prefix :].norm(dim=-1), stage.keep)
"""


@pytest.mark.parametrize("quick", [[], ["--quick"]], ids=["whole", "quick"])
def test_a_reducer_of_your_own_is_scored_by_one_command(
    quick: list[str], shared: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reducers_module, "_registered", {})
    file = tmp_path / "longest.py"
    file.write_text(OWN)
    options = ["--reducers", str(file), *shared]
    try:
        made = CliRunner().invoke(
            app, ["train", "--seeds", "0", "--budgets", "steps", "--jobs", "1", *quick, *options],
            catch_exceptions=False,
        )  # fmt: skip
        assert made.exit_code == 0, made.output
        shown = CliRunner().invoke(app, ["report", *options[:2], *shared[4:]])
    finally:
        VARIANTS.pop("longest staged, end", None)
        reducers_module.reducers.cache_clear()
    # In the order in which they ended.
    rows = sorted(results_log.read(tmp_path / "out" / page.LOG), key=lambda row: -row["operations"])
    assert [row["variant"] for row in rows] == [REFERENCE, "longest staged, end"]
    assert rows[1]["definition"]["elip"]["reducer"] == "longest"
    assert rows[1]["operations"] < 0.75 < rows[0]["operations"] == 1
    assert rows[1]["scores"]["all"] != rows[0]["scores"]["all"]
    _, _, table = made.output.partition("┏")
    assert "longest" in table and "less unpruned" in " ".join(table.split())
    assert ("longest" in shown.output) is not bool(quick)


@pytest.mark.parametrize(
    ("text", "named"), [("x = 1", "registers no reducer"), ("x =", "cannot be run")]
)
def test_a_file_without_a_reducer_is_refused(text: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(text)
    made = CliRunner().invoke(app, ["train", "--reducers", str(tmp_path / "own.py")])
    assert made.exit_code == 2 and named in " ".join(made.output.replace("│", " ").split())


@pytest.mark.slow
def test_the_command(shared: list[str], tmp_path: Path) -> None:
    for regime in RECIPES:
        arguments = ["train", "--variants", HALF, "--seeds", "0-1", "--regime", regime,
                     "--budgets", "operations", "--jobs", "1", *shared]  # fmt: skip
        first = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert first.exit_code == 0, first.output
        assert "4 trainings, 0 of them done" in first.output
        again = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert "4 trainings, 4 of them done" in again.output
    rows = results_log.read(tmp_path / "out" / page.LOG)
    assert len(rows) == 8
    steps = {(row["variant"], row["steps"], row["operations"]) for row in rows}
    assert (REFERENCE, 4, 1.0) in steps
    assert all(0.85 < share < 1.15 for _, _, share in steps)  # of so few steps
    assert len(list(tmp_path.glob("base-*.pt"))) == 2
    shown = CliRunner().invoke(app, ["report", "--out", str(tmp_path / "out")])
    assert "too few seeds" in shown.output


class _InThisProcess:
    """A pool that runs each job when it is given, so that what a test replaces is seen."""

    def __init__(self, jobs: int, context: Any, start: Callable[..., None], given: Any) -> None:
        start(*given)
        torch.set_flush_denormal(False)  # the process goes on to run other tests
        torch.set_num_threads(1)  # it shares the cores with other tests

    def submit(self, job: Callable[..., Any], *given: Any) -> Any:
        from concurrent.futures import Future

        future: Future[Any] = Future()
        future.set_result(job(*given))
        return future

    def shutdown(self, **_: bool) -> None:
        pass


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--seeds", "1-x"], "1-x"),
        (["--regime", "coca"], "coca"),
        (["--variants", "fats"], "fats"),
        (["--budgets", "epochs"], "epochs"),
    ],
)
def test_faults_of_the_command(arguments: list[str], named: str) -> None:
    made = CliRunner().invoke(app, ["train", *arguments])
    assert made.exit_code == 2 and named in made.output


def test_the_list_names_all() -> None:
    shown = CliRunner().invoke(app, ["list"], catch_exceptions=False).output
    assert "fast, end" in shown and "equal steps" in shown
