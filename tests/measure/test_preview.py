"""`elip plan` and `elip models`: what is offered and what a plan does, without any weights."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from entry_points import elip

import elip_plugin
from elip_plugin import ElipConfig
from elip_plugin.cli.target import with_keep
from elip_plugin.errors import PlanError, UnknownModelError, UnsupportedModelError
from elip_plugin.hosts.registry import list_names
from elip_plugin.measure.preview import average_step, solve
from elip_plugin.measure.shares import Operations, count_operations
from elip_plugin.patching.description import Tower
from elip_plugin.patching.install import find_pruner


def preview(*given: Any, target_speedup: float | None = None, **options: Any) -> Any:
    made = elip_plugin.create(*given, device="meta", **options)
    if target_speedup is not None:  # of the tower alone
        made.prune(solve(find_pruner(made.model), target_speedup))
    return find_pruner(made.model)


TOKENS = (197, 197, 178, 178, 129, 129, 129, 129, 129, 129, 80, 80)


def test_a_plan_is_that_of_the_model_built() -> None:
    pytest.importorskip("open_clip")
    assert preview("elip-ViT-B-16").plan.tokens == TOKENS
    assert preview("elip-fast-ViT-B-16").plan.stages[0].lookahead == 1
    built = elip_plugin.find_handle(elip_plugin.create("elip-ViT-tiny").model)
    assert preview("elip-ViT-tiny").plan == built.plan
    assert preview("elip-ViT-tiny", image_size=128).plan.num_patches == 256


def test_the_command_shows_each_block_and_the_saving() -> None:
    pytest.importorskip("open_clip")
    out = elip("plan --model elip-ViT-B-16")
    assert "197 tokens of width 768" in out
    assert "keep 78, look ahead 2" in out


def test_a_plan_that_costs_more_than_it_saves_is_warned_of() -> None:
    pytest.importorskip("open_clip")
    with pytest.warns(UserWarning, match="of an unpruned training step: .* the 'half' preset"):
        elip("plan --model elip-ViT-B-16 --keep 0.99,0.97,0.95")


def test_the_command_ends_in_a_table_of_what_is_counted() -> None:
    pytest.importorskip("open_clip")
    out = elip("plan --model elip-ViT-B-16")
    cells = [cell.strip() for cell in out.rpartition("┡")[2].split("│")[1:]]
    rows = [cells[start : start + 5] for start in range(0, len(cells) - 1, 6)]
    assert [row[0] for row in rows] == [
        "tower, forward", "tower, training step", "whole training step", "memory for backward"
    ]  # fmt: skip
    assert [row[3] for row in rows] == ["1.23", "0.88", "0.90", "0.71"]
    assert all(row[4] for row in rows)  # how it is counted
    counted = count_operations(elip_plugin.create("ViT-B-16", device="meta"))
    for row, unpruned in zip(
        rows, (counted.vision, 3 * counted.vision, 3 * (counted.vision + counted.text))
    ):
        full, pruned = (float(cell.removesuffix(" GFLOP")) for cell in row[1:3])
        assert full == pytest.approx(unpruned / 1e9, rel=0.01)
        assert pruned / full == pytest.approx(float(row[3]), abs=0.02)


def test_a_step_of_a_frozen_tower_is_counted_as_a_forward() -> None:
    counted = Operations(vision=300, text=100, frozen=True)
    assert counted.share == 0.5 and counted.step(0.8) == pytest.approx(0.9)


def test_the_table_of_a_frozen_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("open_clip")
    shape: Any = Tower.shape
    frozen = property(lambda tower: replace(shape.fget(tower), frozen=True))
    monkeypatch.setattr(Tower, "shape", frozen)
    out = elip("plan --model elip-fast-ViT-B-16")
    assert "the forward alone: this tower is frozen" in out
    assert "nothing is kept: this tower is frozen" in out


def test_a_schedule_counts_over_the_whole_training() -> None:
    pytest.importorskip("open_clip")
    out = elip("plan --model elip-lowres-ViT-B-16")
    step = float(re.search(r"tower's step is (\d\.\d\d)", out)[1])  # type: ignore[index]
    pruned = preview("elip-lowres-ViT-B-16").plan.train_cost(768)
    assert step == pytest.approx(0.6 * pruned + 0.4, abs=0.006)
    assert "Averaged over" not in elip("plan --model elip-fast-ViT-B-16")
    warm = average_step(preview("elip-fast-ViT-B-16", ElipConfig.from_mapping(
        {"preset": "fast", "warmup": 1.0})))  # fmt: skip
    assert preview("elip-fast-ViT-B-16").plan.train_cost(768) < warm < 1


def test_a_target_is_reached_and_written(tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    for target in (1.2, 1.4, 2.0):
        made = preview("elip-fast-ViT-B-16", target_speedup=target)
        assert target <= 1 / made.plan.train_cost(768) <= 1.03 * target
    file = tmp_path / "plan.yaml"
    elip(f"plan --model elip-fast-ViT-B-16 --target-speedup 1.5 -o {file}")
    assert file.read_text().startswith("elip:\n  stages: [{")  # YAML, as its name says
    config = ElipConfig.from_mapping(str(file))
    pruned = elip_plugin.create("ViT-B-16", config, device="meta")
    step = 1 / count_operations(pruned).step(find_pruner(pruned.model).plan.train_cost(768))
    assert 1.5 <= step <= 1.53  # of the whole step, text tower included
    other = tmp_path / "plan.json"
    elip(f"plan --model elip-fast-ViT-B-16 --target-speedup 1.5 -o {other}")
    assert ElipConfig.from_mapping(json.loads(other.read_text())["elip"]) == config
    model = elip_plugin.create("ViT-tiny").model
    elip_plugin.find_handle(model).remove()
    assert elip_plugin.apply(model, str(file)).config == config
    with pytest.raises(PlanError, match=r"--target-speedup 9: no keep ratios"):
        preview("elip-ViT-B-16", target_speedup=9)
    with pytest.raises(PlanError, match=r"have 1\.13, .* twice as much 1\.66 at most"):
        preview("elip-ViT-B-16", target_speedup=9)
    with pytest.raises(PlanError, match=r"have (4\.\d\d), .* much \1 at most"):
        preview("elip-lowres-ViT-B-16", target_speedup=9)  # whose reducer has one ratio


def test_counts_and_ratios_of_1_are_scaled_as_what_they_keep() -> None:
    pytest.importorskip("open_clip")
    fast = ElipConfig.preset("fast")
    ratios, counts = (with_keep(fast, keep) for keep in ("0.75,0.5,0.25", "147,98,49"))
    by_ratio, by_count = (preview("ViT-B-16", c, target_speedup=1.4) for c in (ratios, counts))
    assert by_count.plan.tokens == by_ratio.plan.tokens
    skipping = preview("ViT-B-16", with_keep(fast, "1.0,0.5,0.25"), target_speedup=1.4)
    first, *others = (stage.keep for stage in skipping.config.stages)
    assert first == 1.0 and all(0.02 < keep < 0.999 for keep in others)


@pytest.mark.parametrize(
    ("name", "patches", "weight"),
    [
        ("elip_albef_pretrain", 196, 0.2),
        ("albef_pretrain", 196, 0.0),
        ("clip", 49, 0.0),
        ("elip_blip_vqa", 900, 1.0),
        ("elip_blip_vqa:vqav2", 900, 1.0),
        ("elip_blip_caption", 576, 0.0),
        ("elip_clip:ViT-B-16", 196, 0.2),
        ("elip_clip:openmoji", 64, 0.2),
        ("elip_albef_pretrain:openmoji", 64, 0.2),
    ],
)
def test_lavis_archs(name: str, patches: int, weight: float) -> None:
    pytest.importorskip("lavis")
    made = preview(name)
    assert made.plan.num_patches == patches
    assert made.config.text_weight == weight


@pytest.mark.parametrize(
    ("host", "name", "error", "message"),
    [
        ("open_clip", "elip-ViT-Z-16", UnknownModelError, r"hosts \[.*'open_clip'.*ViT-"),
        ("open_clip", "elip-RN50", UnsupportedModelError, "RN50 cannot be pruned"),
        ("lavis", "elip_alpro_qa", UnsupportedModelError, "alpro_qa cannot.* those that can are"),
        ("lavis", "elip_blip_vqa:coco", UnknownModelError, "coco.*vqav2"),
    ],
)
def test_models_that_no_host_prunes(
    host: str, name: str, error: type[Exception], message: str
) -> None:
    pytest.importorskip(host)
    with pytest.raises(error, match=message):
        preview(name)


def test_models_lists_hosts_and_bases_with_the_names_of_their_plans() -> None:
    pytest.importorskip("open_clip")
    out = elip("models --host open_clip")
    assert re.search(r"open_clip \d+\.\d+\.\d+: \d+ models", out)
    assert re.search(r"ViT-B-16 │ elip-fast-X, elip-half-X,[^│]* elip-X │ open_clip", out)
    offered = list_names("open_clip").values()
    assert {model.base for model in offered} <= {*out.split()}  # whole, in a pipe
    for model in offered:
        assert model.name.endswith(model.base)


def test_models_takes_a_part_of_a_name() -> None:
    pytest.importorskip("open_clip")
    out = elip("models b-16-siglip --host open_clip")
    assert "ViT-B-16-SigLIP-256" in out and "ViT-B-32" not in out
    with pytest.raises(AssertionError, match="no model's name has 'xyzzy' in it"):
        elip("models xyzzy --host open_clip")


def test_models_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("open_clip")
    modules: Any = sys.modules
    monkeypatch.setitem(modules, "lavis", None)
    assert "lavis is not installed; run: pip install 'elip-plugin[lavis]'" in elip("models")


def test_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("open_clip")
    import logging

    before = logging.root.manager.disable
    preview("elip-ViT-tiny")
    assert not caplog.records and logging.root.manager.disable == before
