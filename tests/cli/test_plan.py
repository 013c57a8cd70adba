"""`elip plan` names other plans where the given one costs more than no pruning."""

from __future__ import annotations

import re

import pytest
from entry_points import elip

from elip_plugin.config import RECOMMENDED

pytest.importorskip("open_clip")


def costs_after(text: str, out: str) -> dict[str, float]:
    """Return the options that are named in the sentence after a text, with their costs."""
    _, found, rest = out.partition(text)
    assert found, out
    sentence = re.search(r"Faster, as counted: (.*?\))\.", rest)
    assert sentence is not None, rest
    return {o: float(c) for o, c in re.findall(r"(--.+?) \((\d\.\d\d)\)", sentence[1])}


def test_a_plan_that_loses_in_training() -> None:
    keep = "0.99,0.97,0.95"
    out = elip(f"plan --model elip-ViT-B-16 --keep {keep}")
    costs = costs_after("Training by this plan is slower than no pruning", out)
    assert list(costs) == ["--plan half", "--plan level", "--plan third"]
    assert all(cost < 1 for cost in costs.values())
    for options, cost in costs.items():  # as the command itself counts them
        table = elip(f"plan --model elip-ViT-B-16 {options}")
        assert re.search(rf"training step (│ [\d.]+ GFLOP ){{2}}│ {cost:.2f} │", table)


def test_a_plan_that_loses_in_a_forward_alone() -> None:
    out = elip("plan --model elip-ViT-B-16")
    assert "Training by this plan" not in out
    assert costs_after("With eval_mode 'image'", out) == {
        "--plan half": 0.49,
        "--plan level": 0.44,
        "--plan third": 0.31,
    }
    assert "slower than no pruning" not in elip("plan --model elip-fast-ViT-B-16")


def test_where_nothing_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    from elip_plugin.planning import Plan

    monkeypatch.setattr(Plan, "train_cost", lambda self, width: 1.25)
    assert "No preset is faster." in elip("plan --model elip-ViT-tiny")


def test_what_the_quality_report_recommends_is_named_where_it_costs_less() -> None:
    out = elip("plan --model elip-ViT-B-16")
    assert f"--plan {RECOMMENDED}, whose training step is 0.49" in out
    assert "paper and fast cost more and did not score higher" in out
    for cheap in (RECOMMENDED, "third", "lowres"):
        assert "Recommended" not in elip(f"plan --model elip-ViT-B-16 --plan {cheap}")
