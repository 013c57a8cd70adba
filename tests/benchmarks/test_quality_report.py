"""The quality study reports: intervals, answers, costs, the log, and the committed page."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("scipy")
pytest.importorskip("open_clip")

from benchmarks import results_log
from benchmarks.board import chart, cost, grid, report
from benchmarks.board.measure import ALL
from benchmarks.board.questions import Question, verdict
from benchmarks.board.variants import CONTROLS, REFERENCE, VARIANTS
from benchmarks.quality import page
from benchmarks.quality.questions import MRR, QUESTIONS
from benchmarks.quality.recipe import BASE, RECIPES, Recipe, make_recipe
from benchmarks.quality.scores import TEST_PLANS
from benchmarks.stats import Difference, difference
from elip_plugin import ElipConfig
from elip_plugin.patching.progress import level_at

ROOT = Path(__file__).parents[2]
SMALL = Recipe(epochs=2, batch=4, width=32, depth=12, text_depth=1, pairs=10)
HALF = "random 0.5, end"


# -- recipes, variants and their costs


def test_recipes() -> None:
    assert make_recipe("scratch") == RECIPES["scratch"]
    assert make_recipe("continued", quick=True).steps(5000) == 2 * (1280 // 128)
    with pytest.raises(ValueError, match="regime 'coca' is not known"):
        make_recipe("coca")
    for regime, recipe in RECIPES.items():
        assert recipe.regime == regime
        assert (recipe.width, recipe.depth) == (BASE.width, BASE.depth)  # its weights must fit
    rates = [SMALL.rate(step, 100) for step in range(100)]
    assert rates[9] == SMALL.learning_rate == max(rates)
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.01 * SMALL.learning_rate


def test_all_variants_and_questions_hold() -> None:
    for variant in VARIANTS.values():
        assert (variant.config is None) == (variant.elip is None)
        assert variant.control in CONTROLS
    assert grid.check(["fast", "paper"]) == [REFERENCE, "paper", "fast"]  # the table's order
    with pytest.raises(ValueError, match=r"variants \['fats'\] are not known"):
        grid.check(["fats", "paper"])
    for question in QUESTIONS:
        assert {question.variant, question.other} <= set(VARIANTS)
        assert {question.budget, question.other_budget} <= set(grid.BUDGETS)
        assert {question.test, question.other_test} <= {ALL, *TEST_PLANS}
        assert set(question.regimes) <= set(RECIPES)
    for plan in TEST_PLANS.values():
        assert ElipConfig.from_mapping(plan).eval_mode == "image"


def test_operations_of_a_step() -> None:
    recipe = RECIPES["scratch"]
    counted = {name: cost.operations(variant, recipe) for name, variant in VARIANTS.items()}
    assert counted[REFERENCE] == 1
    assert 0.5 < counted["random 0.5"] < 0.53  # the text tower costs the same
    assert counted[HALF] == pytest.approx(0.85 * counted["random 0.5"] + 0.15, abs=1e-9)
    assert counted["attention staged, end"] == pytest.approx(counted["text 0.5 staged, end"])
    levels = cost.phases(VARIANTS["fast, warm, end"])
    assert len(levels) == 5 and sum(levels.values()) == pytest.approx(1)
    assert levels["full"] == pytest.approx(0.225)  # level 0 of the warm-up, and the end
    small = {name: cost.phases(VARIANTS[name]) for name in ("small, end",)}
    assert small["small, end"] == pytest.approx({"small": 0.85, "full": 0.15})


def test_budgets() -> None:
    recipe, variant = RECIPES["scratch"], VARIANTS[HALF]
    assert cost.steps_of(variant, recipe, "steps", 500) == 500
    more = cost.steps_of(variant, recipe, "operations", 500)
    assert more * cost.operations(variant, recipe) == pytest.approx(500, rel=1e-3)
    assert cost.steps_of(VARIANTS[REFERENCE], recipe, "operations", 500) == 500


def test_levels_are_those_of_the_package() -> None:
    for variant in VARIANTS.values():
        config = variant.config
        if config is not None:
            for share in (step / 100 for step in range(100)):
                assert cost.level_at(share, config) == level_at(share, config)


def test_the_average_step_needs_all_its_parts() -> None:
    (pruned,) = set(cost.phases(VARIANTS["fast, end"])) - {"full"}
    assert cost.average(VARIANTS["fast, end"], {"full": 1.0, pruned: 0.5}) == pytest.approx(0.575)
    assert cost.average(VARIANTS["fast, end"], {"full": 1.0}) is None


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
    # t for a third of the 5%: 7.649.
    assert difference(one, two, 1 - 0.05 / 3).half == pytest.approx(
        7.649 * 0.1 / math.sqrt(3), rel=1e-3
    )
    itself = difference(one, one)
    assert (itself.mean, itself.half) == (0, 0)


def test_one_seed_has_no_interval() -> None:
    found = difference({0: 0.3}, {0: 0.1, 1: 0.5})
    assert found.mean == pytest.approx(0.2) and math.isnan(found.half)
    assert report.signed(found) == "+20.0"


@pytest.mark.parametrize(
    ("mean", "half", "said"),
    [
        (0.02, 0.015, "better"),
        (-0.02, 0.015, "worse"),
        (-0.005, 0.004, "worse by less than 1 point"),
        (0.002, 0.007, "equal within 1 point"),
        (0.01, 0.015, "not worse by 1 point"),
        (-0.01, 0.015, "not better by 1 point"),
        (0.0, 0.03, "open"),
    ],
)
def test_verdicts(mean: float, half: float, said: str) -> None:
    assert verdict(Difference(mean, half, 8), 0.01) == said
    assert verdict(Difference(mean, half, 4), 0.01) == "too few seeds"


# -- the results log and the report


def fake_rows(recipe: Recipe, seeds: int, names: list[str]) -> list[dict[str, Any]]:
    rows = []
    wanted = grid.wanted(recipe, names, ["steps", "operations"], range(seeds))
    for place, training in enumerate(wanted):
        shift = 0.0005 * ((7 * place) % 4)
        good = 0.3 if training["variant"] == "fast" else 0.4
        scores = {"loss": 4.0 - good + shift, "mrr": good + shift}
        tests = {test: {**scores, "mrr": 0.35} for test in TEST_PLANS}
        steps = 40 if training["budget"] == "steps" else 60
        curve = [{"step": steps // 2, "loss": 2.0, "mrr": 0.2},
                 {"step": steps, "loss": 1.0, "mrr": good}]  # fmt: skip
        operations = 1.0 if training["variant"] == REFERENCE else steps / 60
        rows.append({**training, "steps": steps, "operations": operations, "curve": curve,
                     "scores": {"all": scores, **tests}})  # fmt: skip
    return rows


def test_a_grid_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "new" / "board.jsonl"
    wanted = grid.wanted(SMALL, [REFERENCE, "fast"], ["steps", "operations"], [0, 1])
    assert len(wanted) == 6  # unpruned training is the same at both budgets
    rows = fake_rows(SMALL, 2, [REFERENCE, "fast"])
    assert results_log.read(path) == []
    results_log.append(path, rows[0])
    results_log.append(path, rows[4])
    found = results_log.read(path)
    assert found == [rows[0], rows[4]]
    left = [(row["variant"], row["budget"], row["seed"])
            for row in results_log.missing(wanted, found)]  # fmt: skip
    assert left == [("fast", "steps", 0), ("fast", "operations", 0),
                    (REFERENCE, "steps", 1), ("fast", "operations", 1)]  # fmt: skip
    # Another recipe, or a variant that means something else by now, is another training.
    other = grid.wanted(replace(SMALL, epochs=3), [REFERENCE], ["steps"], [0])
    assert results_log.missing(other, found) == other
    changed = {**rows[0], "definition": {"elip": {"preset": "paper"}}}
    assert results_log.missing([changed], found) == [changed]
    with path.open("a") as file:
        file.write('{"cut off')
    with pytest.raises(ValueError, match="line 3: not a line of results"):
        results_log.read(path)


def test_the_board_and_the_answers() -> None:
    results = report.select(fake_rows(SMALL, 6, [REFERENCE, "fast", HALF]), SMALL)
    assert list(results) == [
        (REFERENCE, "steps"), ("fast", "steps"), ("fast", "operations"),
        (HALF, "steps"), (HALF, "operations"),
    ]  # fmt: skip
    rows = report.board(results, {}, MRR)
    by_name = {(row.variant, row.budget): row for row in rows}
    assert by_name[REFERENCE, "steps"].gap.mean == 0
    assert by_name["fast", "steps"].gap.mean == pytest.approx(-0.1, abs=0.003)
    assert by_name[HALF, "operations"].step == pytest.approx(1 * 40 / 60)
    assert {row.tests for row in rows} == {(0.35,) * 5}
    text = report.markdown(page.HEADER, map(report.cells, rows))
    assert text.count("\n") == 2 + len(rows)
    assert "| fast | lookahead 1 | 0.67 | - | equal steps | 6 | 30." in text
    questions = [
        Question("Worse?", "fast", regimes=["scratch"], written=""),
        Question("Half?", HALF, "operations", test="half by tome", regimes=["scratch"], written=""),
        Question("Not trained?", "paper", regimes=["scratch"], written=""),
        Question("Worse?", "fast", looks=2, regimes=["scratch"], written=""),
    ]
    lines = report.answers({"scratch": results}, questions, MRR).splitlines()
    assert len(lines) == 5
    assert lines[2].startswith("| Worse? | scratch | worse | -")
    assert lines[4].startswith(
        "| Worse? (Looked at 2 times as seeds were added: interval of 97.5%.) | scratch | worse | -"
    )
    once, twice = (report.answer(results, questions[i], MRR) for i in (0, 3))
    assert once is not None and twice is not None
    assert twice.mean == once.mean and twice.half > 1.1 * once.half
    assert lines[2].endswith("| 6 of 8 |")
    assert lines[3].startswith("| Half? | scratch | worse | -5.")


def test_the_charts(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = report.select(fake_rows(SMALL, 3, [REFERENCE, "fast", HALF]), SMALL)
    rows = report.board(results, {}, MRR)
    edge = chart.front([row for row in rows if row.budget == "steps"])
    assert edge[-1].gap.mean == max(row.gap.mean for row in rows if row.budget == "steps")
    chart.draw_front(rows, MRR, tmp_path / "front.svg")
    chart.draw_curves(results, MRR, tmp_path / "curves.svg")
    assert HALF in (tmp_path / "front.svg").read_text()
    assert HALF in (tmp_path / "curves.svg").read_text()


def test_the_page_is_that_of_the_committed_results() -> None:
    """Write it anew with `python -m benchmarks.quality report --write`."""
    text = page.PAGE.read_text()
    assert text == page.fill(text, page.tables(page.RESULTS))
    assert "| unpruned | all tokens | 1.00 |" in text
    known = [asdict(recipe) for recipe in RECIPES.values()]
    for row in results_log.read(page.RESULTS / page.LOG):
        assert row["definition"] == VARIANTS[row["variant"]].definition
        assert row["recipe"] in known
