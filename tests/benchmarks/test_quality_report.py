"""The quality study reports: scores, intervals, costs, the log, and the committed page."""

from __future__ import annotations

import ast
import itertools
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("scipy")

from benchmarks.quality import chart, cost, grid, page, report, results_log
from benchmarks.quality.recipe import RECIPES, Recipe, make_recipe
from benchmarks.quality.scores import contrastive_loss, ranks, retrieval
from benchmarks.quality.stats import Difference, difference
from benchmarks.quality.variants import SETS, VARIANTS
from elip_plugin.patching.progress import level_at

ROOT = Path(__file__).parents[2]
SMALL = Recipe(epochs=2, batch=4, width=32, depth=12, text_depth=1, pairs=10)


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


# -- recipes, variants and their costs


def test_recipes() -> None:
    assert make_recipe("clip") == RECIPES["clip"]
    assert make_recipe("blip", quick=True).steps(5000) == 8 * (1280 // RECIPES["blip"].batch)
    with pytest.raises(ValueError, match="family 'coca' is not known"):
        make_recipe("coca")
    for family, recipe in RECIPES.items():
        assert recipe.family == family
    rates = [SMALL.rate(step, 100) for step in range(100)]
    assert rates[4] == SMALL.learning_rate == max(rates)
    assert rates[:5] == sorted(rates[:5]) and rates[5:] == sorted(rates[5:], reverse=True)
    assert 0 < rates[-1] < 0.01 * SMALL.learning_rate


def test_all_variants_and_sets_are_used_and_their_configs_hold() -> None:
    assert {name for v in VARIANTS.values() for name in v.sets} == set(SETS)
    for variant in VARIANTS.values():
        assert (variant.config is None) == (variant.elip is None)
    assert grid.choose(["trade"])[0] == "full"
    assert grid.choose(["random", "fast"]) == ["full", "fast", "random"]  # the table's order
    with pytest.raises(ValueError, match=r"variants \['fats'\] are not known"):
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
    assert levels["full"] == pytest.approx(0.25)  # level 0 of the warm-up, and the finish


def test_levels_are_those_of_the_package() -> None:
    for variant in VARIANTS.values():
        config = variant.config
        for share in (step / 100 for step in range(100 * (config is not None))):
            assert cost.level_at(share, config) == level_at(share, config)


def test_the_average_step_needs_all_its_parts() -> None:
    (pruned,) = set(cost.phases("fast + finish")) - {"full"}
    assert cost.average("fast + finish", {"full": 1.0, pruned: 0.5}) == pytest.approx(0.6)
    assert cost.average("fast + finish", {"full": 1.0}) is None


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


def test_one_seed_has_no_interval() -> None:
    found = difference({0: 3.0}, {0: 1.0, 1: 5.0})
    assert found.mean == pytest.approx(2) and math.isnan(found.half)
    assert report.signed(found) == "+2.00"


@pytest.mark.parametrize(
    ("mean", "half", "equivalent"),
    [(0.0, 0.01, True), (-0.015, 0.004, True), (-0.015, 0.01, False), (0.01, 0.04, False)],
)
def test_equivalent_means_that_the_whole_interval_is_above(
    mean: float, half: float, equivalent: bool
) -> None:
    gap = Difference(mean, half, 3)
    row = report.ReportRow("fast", 1, 1, 1, 1, gap, 1, gap, (0, 0, 0, 0), 1)
    assert row.equivalent == equivalent


# -- the results log and the report


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
    assert results_log.read(path) == []
    results_log.append(path, rows[0])
    results_log.append(path, rows[3])
    found = results_log.read(path)
    assert found == [rows[0], rows[3]]
    left = results_log.missing(grid.wanted(SMALL, ["full", "fast"], 2), found)
    assert [(row["variant"], row["seed"]) for row in left] == [("fast", 0), ("full", 1)]
    # Another recipe, or a variant that means something else by now, is another training.
    other = grid.wanted(replace(SMALL, epochs=3), ["full"], 1)
    assert results_log.missing(other, found) == other
    changed = {**rows[0], "definition": {"elip": {"preset": "paper"}}}
    assert results_log.missing([changed], found) == [changed]
    with path.open("a") as file:
        file.write('{"cut off')
    with pytest.raises(ValueError, match="line 3: not a line of results"):
        results_log.read(path)


def test_older_config_keys_in_a_log_are_the_present_ones(tmp_path: Path) -> None:
    (wanted,) = grid.wanted(SMALL, ["fast 0.51 warm + finish"], 1)
    elip = dict(wanted["definition"]["elip"])
    elip |= {"warm_in": elip.pop("warmup"), "full_finish": elip.pop("final_unpruned")}
    old = {**wanted, "definition": {**wanted["definition"], "elip": elip}}
    results_log.append(tmp_path / "log", old)
    assert not results_log.missing([wanted], results_log.read(tmp_path / "log"))
    step = json.dumps({"elip": {"guide": "batch", "preset": "fast"}, "level": 1.0})
    (tmp_path / "steps").write_text(json.dumps({"steps": {step: {"ratio": 0.7}}}))
    assert cost.average("fast by batch", cost.read_ratios(tmp_path / "steps")) == 0.7


def test_the_report_and_the_chart(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    names = ["full", "fast", "random", "fast + finish"]
    results = report.select(fake_rows(SMALL, 3, names), SMALL)
    assert list(results) == [name for name in VARIANTS if name in names]
    phases = {phase for name in names for phase in cost.phases(name)}
    ratios = {phase: 1.0 if phase == "full" else 0.7 for phase in phases}
    rows = report.make_report(results, SMALL, ratios)
    by_name = {row.variant: row for row in rows}
    assert by_name["full"].mrr_gap.mean == 0 and by_name["full"].equivalent
    assert by_name["fast"].equivalent and not by_name["random"].equivalent
    assert by_name["random"].mrr_gap.mean == pytest.approx(-0.1, abs=0.004)
    best = report.best_trade(rows)
    assert best is not None and best.variant == "fast" and best.step == pytest.approx(0.7)
    text = report.markdown(rows)
    assert text.count("\n") == 2 + len(names)
    assert "| random | random dropping | 0.72 | 0.70 | 3 |" in text
    edge = chart.front([(row.step or 0.0, row) for row in rows])
    assert edge[0][1].variant in ("fast", "random")
    assert all(a[1].mrr_gap.mean < b[1].mrr_gap.mean for a, b in itertools.pairwise(edge))
    for name in ("chart.svg", "chart.png"):
        chart.draw(rows, tmp_path / name)
    assert "fast + finish" in (tmp_path / "chart.svg").read_text()


def test_the_page_is_that_of_the_committed_results() -> None:
    """Write it anew with `python -m benchmarks.quality.page`."""
    text = (ROOT / "docs" / "quality.md").read_text()
    assert text == page.fill(text)
    assert "| full | no pruning | 1.00 |" in text
    for family in RECIPES:
        assert (page.RESULTS / f"{family}.md").read_text() == report.markdown(page.rows_of(family))
    rows = results_log.read(page.RESULTS / "quality.jsonl")
    assert not [
        row for row in rows if row["definition"] != VARIANTS[row["variant"]].definition
        or row["recipe"] != asdict(RECIPES[row["recipe"]["family"]])
    ]  # fmt: skip


def test_benchmarks_use_public_names_only() -> None:
    for path in (ROOT / "benchmarks").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            ours = {name for name in modules if name.split(".")[0] == "elip_plugin"}
            assert ours <= {"elip_plugin", "elip_plugin.data"}, path
