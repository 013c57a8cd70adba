"""What is counted and how variants are made; times are only checked to be there."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from entry_points import elip
from torch import Tensor, nn

from elip_plugin import ElipConfig, create, find_handle, plan
from elip_plugin.errors import ConfigError
from elip_plugin.measure.counts import count_flops, saved_bytes
from elip_plugin.measure.report import notes_on
from elip_plugin.measure.speed import Row, measure_speed, time_in_turn
from elip_plugin.measure.variants import PASSES, Variant, make_variants, pruned_variants
from elip_plugin.patching.install import find_pruner

TINY = "ViT-tiny"


@pytest.fixture(scope="module")
def host_model() -> Any:
    pytest.importorskip("open_clip")
    return create(TINY)


def runnable(host_model: Any) -> list[str]:
    """List the pruned variants that every tower can do."""
    return [name for name, plan in pruned_variants().items() if not plan.reducer.needs]


def test_flops_are_two_per_multiply_add_with_the_backward_pass() -> None:
    layer, x = nn.Linear(5, 7, bias=False), torch.randn(3, 5, requires_grad=True)
    assert count_flops(lambda: layer(x)) == 2 * 3 * 5 * 7
    assert count_flops(lambda: layer(x).sum().backward()) == 3 * 2 * 3 * 5 * 7


def test_fused_attention_is_counted_in_training_and_evaluation() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(1, 5, 8)

    def run() -> None:
        attention(x, x, x, need_weights=False)

    expected = 2 * (4 * 5 * 8 * 8 + 2 * 5 * 5 * 8)
    assert count_flops(run) == expected
    attention.eval()
    with torch.inference_mode():
        assert count_flops(run) == expected


def test_saved_bytes_counts_each_storage_once_and_no_weight() -> None:
    weight = torch.randn(10, 10, requires_grad=True)
    x = torch.randn(4, 10)

    def run() -> Tensor:
        y = x @ weight  # keeps x and the weight
        return (y.tanh() * y.view(-1, 10)).sum()  # keeps y once, and its tanh

    assert saved_bytes(run, [weight]) == 3 * 4 * 10 * 4


@pytest.mark.parametrize("preset", ["paper", "fast"])
def test_a_towers_arithmetic_and_memory_are_what_the_plan_counts(
    host_model: Any, preset: str
) -> None:
    full, pruned = make_variants(host_model, ["full", preset], batch=4).values()
    counted = plan(ElipConfig.preset(preset), num_patches=64, depth=12)

    def flops(variant: Variant) -> int:
        return count_flops(lambda: variant.tower_loss().backward())

    assert flops(pruned) / flops(full) == pytest.approx(counted.train_cost(32), abs=0.025)
    weights = list(host_model.model.parameters())
    kept = saved_bytes(pruned.tower_loss, weights) / saved_bytes(full.tower_loss, weights)
    assert kept == pytest.approx(1 - counted.removed, abs=0.03)


def test_choosing_costs_next_to_nothing(host_model: Any) -> None:
    """Scoring is one key projection and one row per stage, and keeps nothing for backward."""
    made = make_variants(host_model, ["fast", "random"], batch=4)
    counts = [count_flops(lambda v=v: v.loss().backward()) for v in made.values()]
    assert 1 < counts[0] / counts[1] < 1.02


def test_variants_share_weights_and_nothing_else(host_model: Any) -> None:
    weights = list(host_model.model.parameters())
    made = make_variants(host_model, ["full", "fast"], batch=1)
    full, fast = (variant.host_model.model for variant in made.values())
    for model in (full, fast):
        assert all(a is b for a, b in zip(model.parameters(), weights, strict=True))
    assert type(full).__name__ == "CLIP"
    assert find_handle(fast).plan.stages[0].lookahead == 1
    assert find_handle(host_model.model).config == ElipConfig.preset("half")


def test_inference_prunes_by_the_image_alone_and_the_tower_by_text(host_model: Any) -> None:
    (fast,) = make_variants(host_model, ["fast"], batch=2).values()
    model = fast.host_model.model
    features = {}
    for training in (True, False):
        model.train(training)
        with torch.no_grad():
            features[training] = fast.features()
            with find_pruner(model).asked(eval_mode="image"):
                unguided = model.encode_image(fast.images)
    assert not torch.equal(features[True], features[False])
    assert torch.equal(features[False], unguided)


@pytest.mark.slow
def test_every_variant_runs_every_pass(host_model: Any) -> None:
    names = ["full", *runnable(host_model)]
    _, rows = measure_speed(host_model, variants=names, batch=2, rounds=1)
    assert {"paper", "fast", "evit", "tome", "random"} <= {*names}
    assert [(r.measured, r.variant) for r in rows] == [(p, v) for p in PASSES for v in names]
    assert all(row.seconds > 0 and row.low <= row.ratio <= row.high for row in rows)
    assert all(row.ratio == 1 for row in rows if row.variant == "full")
    assert all(row.memory > 0 for row in rows if row.measured != "inference")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"passes": ["sleep"]}, "--passes .*'sleep'.* not known"),
        ({"variants": ["full", "halve"]}, "--variants .*'halve'.* not known"),
        ({"precision": "fp8"}, "--precision must be one of"),
    ],
)
def test_faults(host_model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        measure_speed(host_model, **options)


def test_steps_take_turns() -> None:
    order: list[str] = []
    times = time_in_turn({name: partial(order.append, name) for name in "ab"}, rounds=3)
    assert order == ["a", "b"] * 5  # two rounds do not count
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3}


def test_the_command_prints_and_writes(tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    command = f"bench speed --model {TINY} --batch 2 --rounds 1 --variants full,fast"
    assert "rounds in turn: 1 " in elip(f"{command} --out {tmp_path}")
    made = json.loads((tmp_path / "speed.json").read_text())
    assert made["setting"]["model"] == TINY and len(made["rows"]) == 6
    assert [row["variant"] for row in made["rows"]] == ["full", "fast"] * 3


@pytest.mark.slow
def test_every_variant_suits_a_map_pooling_tower() -> None:
    pytest.importorskip("open_clip")
    pytest.importorskip("timm.layers")
    host_model = create("ViT-B-16-SigLIP", image_size=64)
    for name, variant in make_variants(host_model, runnable(host_model), batch=1).items():
        assert variant.tower_loss().isfinite(), name


def test_lavis_is_measured_beside_its_own_and_fused_attention() -> None:
    pytest.importorskip("lavis")
    host_model = create("elip_albef_pretrain:openmoji")
    made = make_variants(host_model, ["full", "fused", "fast"], batch=4)
    for variant in made.values():
        variant.host_model.model.eval()
    torch.testing.assert_close(made["full"].features(), made["fused"].features())
    _, rows = measure_speed(
        host_model, variants=["full", "fused", "tome"], passes=["step"], batch=4, rounds=1
    )
    assert [row.variant for row in rows] == ["full", "fused", "tome"]
    # Equal counts keep equal bytes, though the momentum encoder's weights are replaced.
    weights = list(host_model.model.parameters())
    fast = made["fast"]
    fast.host_model.model.train()
    assert len({saved_bytes(fast.loss, weights) for _ in range(3)}) == 1


def test_a_plan_of_ones_own_keeps_its_text_weight_and_comes_last(host_model: Any) -> None:
    """Whatever plan the model came with."""
    model = create(f"elip-half-{TINY}")
    own = ElipConfig.from_mapping({"preset": "paper", "text_weight": 0.7})
    made = make_variants(model, ["full", "paper"], batch=2, own=own)
    assert list(made) == ["full", "paper", "paper with text_weight 0.7"]
    weights = [find_pruner(v.host_model.model).config.text_weight for v in [*made.values()][1:]]
    assert weights == [0.2, 0.7]


def test_what_inference_is_of_a_plan_that_keeps_all_tokens_is_said() -> None:
    rows = [Row("half", "inference", 1, 1, 1, 1, 0, 0)]
    assert "keeps all tokens in evaluation" in notes_on(rows, ElipConfig.preset("half"))[0]
    assert not notes_on(rows, ElipConfig.preset("embed")) and not notes_on(rows, None)
    assert not notes_on([replace(rows[0], measured="tower")], ElipConfig.preset("half"))
