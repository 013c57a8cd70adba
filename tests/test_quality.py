"""The scoreboard: equal trainings, honest scores, intervals, and a grid that continues."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from elip_plugin.cli.main import app
from elip_plugin.errors import ConfigError, DataError, UnsupportedModelError
from elip_plugin.quality import board, chart, cost, grid, ledger, run
from elip_plugin.quality import trial as trials
from elip_plugin.quality.pairs import Pairs, batches, read_pairs
from elip_plugin.quality.recipe import RECIPES, Recipe, make_recipe
from elip_plugin.quality.scores import contrastive_loss, ranks, retrieval
from elip_plugin.quality.stats import Difference, difference
from elip_plugin.quality.variants import SETS, VARIANTS, Variant
from elip_plugin.reducers import random as random_reducer

RESULTS = Path(__file__).parents[1] / "docs" / "results"
SMALL = Recipe(epochs=2, batch=4, width=32, depth=12, text_depth=1, pairs=10)


def make_pairs(count: int, first: int = 0) -> Pairs:
    places = range(first, first + count)
    colours = [(17 * i % 256, 31 * i % 256, 101 * i % 256) for i in places]
    return Pairs(
        [Image.new("RGB", (64, 64), colour) for colour in colours], [f"colour {i}" for i in places]
    )


TRAIN, HELD_OUT = make_pairs(10), make_pairs(6, 10)


# -- data and scores


def test_batches_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = list(batches(TRAIN, 4, 2, seed=5))
    torch.manual_seed(2)
    two = []
    for images, which in batches(TRAIN, 4, 2, seed=5):
        torch.rand(3)  # a variant that draws
        two.append((images, which))
    other = list(batches(TRAIN, 4, 2, seed=6))
    assert len(one) == 4 == SMALL.steps(len(TRAIN))
    for (a, i), (b, j) in zip(one, two):
        assert torch.equal(a, b) and torch.equal(i, j)
    assert any(not torch.equal(i, j) for (_, i), (_, j) in zip(one, other))
    assert not torch.equal(one[0][1], one[2][1])  # the epochs differ
    torch.manual_seed(1)
    drawn = torch.rand(3)
    torch.manual_seed(1)
    next(batches(TRAIN, 4, 2, seed=5))
    assert torch.equal(torch.rand(3), drawn)  # a variant's own stream goes on undisturbed


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [SMALL.rate(step, 100) for step in range(100)]
    assert rates[4] == SMALL.learning_rate == max(rates)
    assert rates[:5] == sorted(rates[:5]) and rates[5:] == sorted(rates[5:], reverse=True)
    assert 0 < rates[-1] < 0.01 * SMALL.learning_rate


def test_ranks_count_ties_against_the_model() -> None:
    similarity = torch.tensor([[3.0, 1.0, 2.0], [5.0, 4.0, 4.0], [1.0, 1.0, 0.0]])
    assert ranks(similarity).tolist() == [1, 3, 3]


def test_retrieval_by_hand() -> None:
    images, texts = torch.eye(3), torch.eye(3)[[0, 2, 1]] + 0.1
    found = retrieval(images, texts)
    # image 0 finds its text at once; images 1 and 2 find each other's first.
    assert found["i2t_r1"] == found["t2i_r1"] == pytest.approx(1 / 3)
    assert found["i2t_r5"] == 1
    assert 1 / 3 < found["mrr"] < 1


def test_the_contrastive_loss_is_openclips() -> None:
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    images, texts = torch.randn(7, 5), torch.randn(7, 5)
    expected = open_clip.ClipLoss()(
        F.normalize(images, dim=-1), F.normalize(texts, dim=-1), torch.tensor(9.0)
    )
    assert contrastive_loss(images, texts, 9.0) == pytest.approx(expected.item(), rel=1e-5)


# -- variants


def test_all_variants_and_sets_are_used_and_their_configs_hold() -> None:
    assert {name for v in VARIANTS.values() for name in v.sets} == set(SETS)
    for variant in VARIANTS.values():
        config = variant.config(100)
        assert (config is None) == (variant.elip is None)
    assert grid.choose(["trade"])[0] == "full"
    assert grid.choose(["random", "fast"]) == ["full", "fast", "random"]  # the table's order
    with pytest.raises(ConfigError, match=r"variants \['fats'\] are not known"):
        grid.choose(["fats", "main"])


def test_token_layers_of_the_table() -> None:
    layers = {name: cost.layers(name, RECIPES["clip"]) for name in VARIANTS}
    assert layers["full"] == 1
    assert layers["paper"] == layers["fast"] == layers["random"] == pytest.approx(0.718, abs=5e-4)
    assert layers["tome"] == pytest.approx(layers["fast"], abs=2e-3)
    for name in ("fast 0.90", "fast 0.51", "fast 0.36"):
        assert layers[name] == pytest.approx(float(name.split()[1]), abs=6e-3)
    assert layers["fast + finish"] == pytest.approx(0.8 * layers["fast"] + 0.2, abs=1e-9)
    assert layers["coarse + finish"] == pytest.approx(0.8 * 37 / 65 + 0.2, abs=1e-9)
    levels = cost.phases("fast 0.36 warm + finish")
    assert len(levels) == 5 and sum(levels.values()) == pytest.approx(1)
    assert levels["full"] == pytest.approx(0.25)  # level 0 of the warm-in, and the finish


def test_the_average_step_needs_all_its_parts() -> None:
    (pruned,) = set(cost.phases("fast + finish")) - {"full"}
    assert cost.average("fast + finish", {"full": 1.0, pruned: 0.5}) == pytest.approx(0.6)
    assert cost.average("fast + finish", {"full": 1.0}) is None


class Recorder:
    """A trial that only records what it is given."""

    def __init__(self) -> None:
        self.model: Any = nn.Linear(1, 1)
        self.seen: list[Tensor] = []

    def loss(self, images: Tensor, which: Tensor, progress: float) -> Tensor:
        self.seen.append(images)
        return random_reducer.draw(len(which), 9, images.device)


def test_the_coarse_phase_shows_smaller_images() -> None:
    trial, variant = Recorder(), Variant("", coarse=0.5)
    images, which = torch.randn(2, 3, 64, 64), torch.tensor([0, 1])
    for done in (0.0, 0.49, 0.5, 0.9):
        run.training_loss(trial, variant, images, which, done)  # type: ignore[arg-type]
    assert [image.shape[-1] for image in trial.seen] == [48, 48, 64, 64]


def test_dropping_by_caption_draws_the_same_for_the_same_pair() -> None:
    trial, variant = Recorder(), VARIANTS["random by caption"]
    images = torch.randn(3, 3, 64, 64)

    def draw(*which: int) -> Tensor:
        return run.training_loss(trial, variant, images, torch.tensor(which), 0.0)  # type: ignore[arg-type]

    one, two = draw(4, 5, 6), draw(6, 4, 7)
    assert torch.equal(one[0], two[1]) and torch.equal(one[2], two[0])
    assert not torch.equal(one[0], one[1])
    before = random_reducer.draw
    with pytest.raises(RuntimeError), run._control(trial, variant, torch.tensor([1])):  # type: ignore[arg-type]
        raise RuntimeError
    assert random_reducer.draw is before


# -- training


@pytest.mark.parametrize(
    "name", ["full", "fast", "fast shuffled", "random by caption", "fast by batch", "tome",
             "fast + finish", "fast 0.36 warm + finish", "coarse + finish", "fast + anneal"]
)  # fmt: skip
def test_a_clip_trains_and_is_scored(name: str) -> None:
    pytest.importorskip("open_clip")
    epochs: list[int] = []
    made = run.run(VARIANTS[name], SMALL, TRAIN, HELD_OUT, 3, lambda: epochs.append(1))
    assert len(made["losses"]) == len(epochs) == 2
    assert all(math.isfinite(loss) for loss in made["losses"])
    for scores in made["scores"].values():
        assert set(scores) == {"loss", "mrr", "i2t_r1", "i2t_r5", "t2i_r1", "t2i_r5"}
    assert made["scores"]["full"]["loss"] != made["scores"]["pruned"]["loss"]


def test_equal_seeds_give_equal_trainings_and_variants_share_their_start() -> None:
    pytest.importorskip("open_clip")
    one, two = (run.run(VARIANTS["random"], SMALL, TRAIN, HELD_OUT, 3) for _ in range(2))
    assert one["losses"] == two["losses"] and one["scores"] == two["scores"]
    other = run.run(VARIANTS["random"], SMALL, TRAIN, HELD_OUT, 4)
    assert other["losses"] != one["losses"]
    starts = []
    for _ in ("full", "fast"):
        torch.manual_seed(3)
        trial = trials.make("clip", SMALL, list(TRAIN.captions), list(HELD_OUT.captions))
        starts.append({k: v.clone() for k, v in trial.model.state_dict().items()})
    assert all(torch.equal(starts[0][k], starts[1][k]) for k in starts[0])


def test_a_shuffled_guide_is_anothers_caption(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("open_clip")
    import elip_plugin
    from elip_plugin.hosts.open_clip.guide import guide_from_text
    from elip_plugin.reducers import elip

    torch.manual_seed(0)
    trial = trials.make("clip", SMALL, list(TRAIN.captions), [])
    elip_plugin.apply(trial.model, "fast")
    seen: list[Tensor] = []
    real = elip.score
    monkeypatch.setattr(
        elip, "score", lambda x, g, *a, **o: (seen.append(g), real(x, g, *a, **o))[1]
    )
    images, which = next(batches(TRAIN, 4, 1, 0))
    run.training_loss(trial, VARIANTS["fast shuffled"], images, which, 0.0)
    own = guide_from_text(trial.guide(which), trial.model.visual)
    assert torch.allclose(seen[0], own.roll(1, 0), atol=1e-6)
    assert not torch.allclose(seen[0], own, atol=1e-3)


@pytest.mark.parametrize("family", ["albef", "blip"])
def test_lavis_families_train_and_are_scored(family: str) -> None:
    pytest.importorskip("lavis")
    recipe = replace(SMALL, family=family, epochs=1)
    losses = []
    for name in ("full", "fast", "fast shuffled"):
        made = run.run(VARIANTS[name], recipe, TRAIN, HELD_OUT, 0)
        losses.append(made["losses"][0])
        assert 0 < made["scores"]["full"]["mrr"] <= 1
    assert len(set(losses)) == 3
    with pytest.raises(UnsupportedModelError, match="take one image size"):
        run.run(VARIANTS["coarse + finish"], recipe, TRAIN, HELD_OUT, 0)


# -- statistics


def test_differences_are_paired_by_seed() -> None:
    noise = {0: 5.0, 1: -3.0, 2: 1.0, 7: 9.0}  # of the seeds, far larger than the difference
    one = {seed: 11.0 + noise[seed] for seed in (0, 1, 2)}
    two = {0: 10.1 + noise[0], 1: 9.9 + noise[1], 2: 10.0 + noise[2], 7: 99.0}
    found = difference(one, two)
    assert found.mean == pytest.approx(1.0) and found.seeds == 3
    # By hand: standard deviation 0.1, t of 2 degrees of freedom 4.303.
    assert found.half == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=1e-3)
    assert found.low < 1 < found.high
    itself = difference(one, one)
    assert (itself.mean, itself.half) == (0, 0)


@pytest.mark.parametrize(
    ("mean", "half", "equivalent"),
    [(0.0, 0.01, True), (-0.015, 0.004, True), (-0.015, 0.01, False), (0.01, 0.04, False)],
)
def test_equivalent_means_that_the_whole_interval_is_above(
    mean: float, half: float, equivalent: bool
) -> None:
    gap = Difference(mean, half, 3)
    line = board.Line("fast", 1, 1, 1, 1, gap, 1, gap, (0, 0, 0, 0), 1)
    assert line.equivalent == equivalent


def test_one_seed_has_no_interval() -> None:
    found = difference({0: 3.0}, {0: 1.0, 1: 5.0})
    assert found.mean == pytest.approx(2) and math.isnan(found.half)
    assert board.signed(found) == "+2.00"


# -- the grid and its ledger


def fake_rows(recipe: Recipe, seeds: int, names: list[str]) -> list[dict[str, Any]]:
    rows = []
    for place, training in enumerate(grid.wanted(recipe, names, seeds)):
        shift = 0.001 * ((7 * place) % 5)
        good = 0.3 if training["variant"] == "random" else 0.4
        scores = {"loss": 4.0 - good + shift, "mrr": good + shift, "i2t_r1": 0.1, "t2i_r1": 0.2,
                  "i2t_r5": 0.3, "t2i_r5": 0.4}  # fmt: skip
        rows.append({**training, "losses": [2.0, 1.0 + shift],
                     "scores": {"full": scores, "pruned": scores}})  # fmt: skip
    return rows


def test_a_grid_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "new" / "quality.jsonl"
    rows = fake_rows(SMALL, 2, ["full", "fast"])
    assert ledger.read(path) == []
    ledger.append(path, rows[0])
    ledger.append(path, rows[3])
    left = ledger.missing(grid.wanted(SMALL, ["full", "fast"], 2), ledger.read(path))
    assert [(row["variant"], row["seed"]) for row in left] == [("fast", 0), ("full", 1)]
    # Another recipe, or a variant that means something else by now, is another training.
    other = grid.wanted(replace(SMALL, epochs=3), ["full"], 1)
    assert ledger.missing(other, ledger.read(path)) == other
    changed = {**rows[0], "definition": {"elip": {"preset": "paper"}}}
    assert ledger.missing([changed], ledger.read(path)) == [changed]
    with path.open("a") as file:
        file.write('{"cut off')
    with pytest.raises(DataError, match="line 3: not a line of results"):
        ledger.read(path)


def test_the_board_and_the_chart(tmp_path: Path) -> None:
    names = ["full", "fast", "random", "fast + finish"]
    results = board.select(fake_rows(SMALL, 3, names), SMALL)
    assert list(results) == [name for name in VARIANTS if name in names]
    phases = {phase for name in names for phase in cost.phases(name)}
    ratios = {phase: 1.0 if phase == "full" else 0.7 for phase in phases}
    lines = board.make_board(results, SMALL, ratios)
    by_name = {line.variant: line for line in lines}
    assert by_name["full"].mrr_gap.mean == 0 and by_name["full"].equivalent
    assert by_name["fast"].equivalent and not by_name["random"].equivalent
    assert by_name["random"].mrr_gap.mean == pytest.approx(-0.1, abs=0.004)
    best = board.best_trade(lines)
    assert best is not None and best.variant == "fast" and best.step == pytest.approx(0.7)
    text = board.markdown(lines)
    assert text.count("\n") == 2 + len(names)
    assert "| random | random dropping | 0.72 | 0.70 | 3 |" in text
    edge = chart.front([(line.step or 0.0, line) for line in lines])
    assert next(line.variant for _, line in edge) in ("fast", "random")
    assert all(a[1].mrr_gap.mean < b[1].mrr_gap.mean for a, b in itertools.pairwise(edge))
    for name in ("board.svg", "board.png"):
        chart.draw(lines, tmp_path / name)
    assert "fast + finish" in (tmp_path / "board.svg").read_text()


def test_steps_are_timed_in_turn() -> None:
    pytest.importorskip("open_clip")
    times = cost.time_phases(["full", "coarse + finish", "fast"], SMALL, TRAIN, rounds=1)
    assert next(iter(times)) == "full" and times["full"].ratio == 1
    assert set(times) == {"full", cost.COARSE, *cost.phases("fast")}


@pytest.mark.slow
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("open_clip")
    data = tmp_path / "data"
    write_split(data, "train", TRAIN)
    write_split(data, "held_out", HELD_OUT)
    monkeypatch.setitem(RECIPES, "clip", SMALL)
    arguments = ["bench", "quality", "--variants", "full,fast", "--seeds", "2", "--rounds", "1",
                 "--data", str(data), "--out", str(tmp_path / "out"), "--jobs", "2"]  # fmt: skip
    first = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert first.exit_code == 0, first.output
    kept = (tmp_path / "out" / "quality.jsonl").read_text()
    assert len(kept.splitlines()) == 4
    assert "4 trainings, 0 of them done" in first.output
    assert "has learnt too little" not in first.output
    table = (tmp_path / "out" / "clip.md").read_text()
    assert "| fast | lookahead 1 | 0.72 |" in table
    assert json.loads((tmp_path / "out" / "clip-steps.json").read_text())["steps"]["full"]
    monkeypatch.setattr(board, "TAUGHT", 1.1)
    again = CliRunner().invoke(app, [*arguments, "--rounds", "0"], catch_exceptions=False)
    assert "4 trainings, 4 of them done" in again.output
    assert "has learnt too little" in again.output
    assert (tmp_path / "out" / "quality.jsonl").read_text() == kept
    assert (tmp_path / "out" / "clip.md").read_text() == table


def write_split(folder: Path, split: str, pairs: Pairs) -> None:
    folder.mkdir(exist_ok=True)
    rows = []
    for picture, caption in zip(pairs.pictures, pairs.captions):
        picture.save(folder / f"{caption}.png")
        rows.append({"image": f"{caption}.png", "caption": caption})
    (folder / f"{split}.json").write_text(json.dumps(rows))


def test_pairs_are_read(tmp_path: Path) -> None:
    write_split(tmp_path, "train", TRAIN)
    found = read_pairs(tmp_path, "train", most=7)
    assert len(found) == 7 and list(found.captions) == list(TRAIN.captions)[:7]


def test_recipes() -> None:
    assert make_recipe("clip") == RECIPES["clip"]
    assert make_recipe("blip", quick=True).steps(5000) == 8 * (1280 // RECIPES["blip"].batch)
    with pytest.raises(ConfigError, match="family 'coca' is not known"):
        make_recipe("coca")
    for family, recipe in RECIPES.items():
        assert recipe.family == family == asdict(recipe)["family"]


@pytest.mark.parametrize("option", ["--seeds", "--jobs", "--rounds"])
def test_faults_of_the_command(option: str) -> None:
    made = CliRunner().invoke(app, ["bench", "quality", option, "-1"])
    assert made.exit_code == 1 and f"{option} must be" in str(made.exception)


def test_the_list_names_all() -> None:
    shown = CliRunner().invoke(app, ["bench", "quality", "--list"], catch_exceptions=False).output
    assert "fast + finish" in shown and "leak: controls" in shown
