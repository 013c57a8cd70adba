"""What is counted and how variants are made; times are only checked to be there."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from elip_plugin import ElipConfig, apply, plan
from elip_plugin.cli.main import app
from elip_plugin.errors import ConfigError
from elip_plugin.measure import memory, speed, startup
from elip_plugin.measure.counts import count_flops, saved_bytes
from elip_plugin.measure.subject import VARIANTS, sharing_weights, stepped, variant_of

TINY = "ViT-tiny"
OPTIONS: dict[str, Any] = {"image_size": None, "device": "cpu", "precision": "fp32"}


@pytest.fixture
def subject() -> Any:
    pytest.importorskip("open_clip")
    return speed.make_subject(TINY, batch=4, **OPTIONS)


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
def test_a_towers_arithmetic_and_memory_are_what_the_plan_counts(subject: Any, preset: str) -> None:
    full, pruned = (subject.passes(variant_of(subject, name))["tower"] for name in ("full", preset))
    counted = plan(ElipConfig.preset(preset), num_patches=64, depth=12)

    def flops(loss: Callable[[], Tensor]) -> int:
        return count_flops(lambda: loss().backward())

    ratio = flops(pruned) / flops(full)
    assert ratio == pytest.approx(counted.train_cost(32), abs=0.025)
    weights = list(subject.model.parameters())
    kept = saved_bytes(pruned, weights) / saved_bytes(full, weights)
    assert kept == pytest.approx(1 - counted.removed, abs=0.03)


def test_choosing_costs_next_to_nothing(subject: Any) -> None:
    """Scoring is one key projection and one row per stage, and keeps nothing for backward."""
    fast, random = (subject.passes(variant_of(subject, n))["step"] for n in ("fast", "random"))
    counts = [count_flops(lambda run=run: run().backward()) for run in (fast, random)]
    assert 1 < counts[0] / counts[1] < 1.02


def test_variants_share_weights_and_nothing_else(subject: Any) -> None:
    model = sharing_weights(subject.model)
    assert all(a is b for a, b in zip(model.parameters(), subject.model.parameters()))
    apply(model, "fast")
    assert type(subject.model).__name__ == "CLIP"
    assert "elip" not in vars(subject.model.visual.transformer)


def test_every_variant_runs_every_pass(subject: Any) -> None:
    rows = speed.bench(subject, VARIANTS, speed.PASSES, rounds=1)
    assert [(r.measured, r.variant) for r in rows] == [
        (p, v) for p in speed.PASSES for v in VARIANTS
    ]
    assert all(row.seconds > 0 and row.low <= row.ratio <= row.high for row in rows)
    assert all(row.ratio == 1 for row in rows if row.variant == "full")
    assert all(row.memory > 0 for row in rows if row.measured != "inference")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"passes": ["sleep"]}, "passes .*'sleep'.* not known"),
        ({"variants": ["full", "half"]}, "variants .*'half'.* not known"),
        ({"precision": "fp8"}, "precision must be one of"),
        ({"batch": 0}, "batch must be 1 or more"),
    ],
)
def test_faults(options: dict[str, Any], message: str) -> None:
    pytest.importorskip("open_clip")
    given: dict[str, Any] = {"variants": ["full"], "passes": ["step"], "batch": 2, **OPTIONS}
    with pytest.raises(ConfigError, match=message):
        speed.run(TINY, rounds=1, compiled=False, progress=lambda _: None, **{**given, **options})


def test_the_command_prints_and_writes(tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    command = f"bench speed --model elip-{TINY} --batch 2 --rounds 1 --variants full,fast"
    result = CliRunner().invoke(app, [*command.split(), "--out", str(tmp_path)])
    assert result.exit_code == 0, result.exception
    assert "medians of 1 rounds" in " ".join(result.output.split())
    made = json.loads((tmp_path / "speed.json").read_text())
    assert made["setting"]["model"] == TINY and len(made["rows"]) == 6
    rows = list(csv.DictReader((tmp_path / "speed.csv").open()))
    assert [row["variant"] for row in rows] == ["full", "fast"] * 3
    assert (tmp_path / "speed.svg").read_text().count("<rect") == 6


@pytest.mark.slow
def test_what_does_not_suit_a_model_is_left_out_aloud() -> None:
    pytest.importorskip("open_clip")
    pytest.importorskip("timm.layers")
    said: list[str] = []
    given: dict[str, Any] = {"variants": ["full", "tome"], "passes": ["inference"], "batch": 1}
    _, rows = speed.run(
        "ViT-B-16-SigLIP", rounds=1, compiled=False, progress=said.append,
        **{**given, **OPTIONS, "image_size": 64},
    )  # fmt: skip
    assert [row.variant for row in rows] == ["full"]
    assert "tome is left out: it is not for ViT-B-16-SigLIP" in said


def test_lavis_is_measured_beside_its_own_and_fused_attention(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("lavis")
    from lavis_family import twin  # tests' own tiny models

    from elip_plugin import find_handle
    from elip_plugin.hosts.lavis import bench as host_bench

    def small(base: str, image_size: int | None) -> Any:
        model = twin(base)
        find_handle(model).remove()
        return model

    monkeypatch.setattr(host_bench, "_model", small)
    made = speed.make_subject("elip_albef_pretrain", batch=4, **OPTIONS)
    stock, fused = (
        made.passes(variant_of(made, name))["inference"]() for name in ("full", "fused")
    )
    torch.testing.assert_close(stock, fused)
    rows = speed.bench(made, ["full", "fused", "fast", "evit"], ["tower", "step"], rounds=1)
    assert len(rows) == 8
    assert "tome" in made.unsuited
    # Equal counts keep equal bytes, whatever is drawn, and though the twin's weights are replaced.
    run = made.passes(variant_of(made, "fast"))["step"]
    assert len({saved_bytes(run, made.model.parameters()) for _ in range(3)}) == 1


def peak_bytes(step: Callable[[], object]) -> int:
    """Measure the most that a call has allocated at any moment, beyond what was there."""
    with torch.profiler.profile(profile_memory=True) as profiler:
        step()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize("variant", ["full", "fast"])
def test_predicted_memory_is_what_a_step_takes(variant: str) -> None:
    pytest.importorskip("open_clip")
    (fit,) = memory.fit_batches(TINY, 2**30, variants=[variant], **OPTIONS)
    batch = 64  # so many that activations outweigh gradients, which take their place
    subject = speed.make_subject(TINY, batch=batch, **OPTIONS)
    weights = list(subject.model.parameters())
    run = subject.passes(variant_of(subject, variant))["step"]
    optimizer = torch.optim.AdamW(weights)
    step = stepped(run, optimizer)
    step()
    optimizer.zero_grad(set_to_none=True)
    there = 3 * sum(p.numel() * p.element_size() for p in weights)  # weights and two moments
    assert fit.fixed + batch * fit.per_pair == pytest.approx(there + peak_bytes(step), rel=0.1)
    assert fit.fixed + fit.batch * fit.per_pair <= 2**30
    assert fit.fixed + (fit.batch + 1) * fit.per_pair > 2**30


def test_pruning_fits_more_pairs() -> None:
    pytest.importorskip("open_clip")
    command = ["bench", "memory", "--fit", "1GiB", "--model", TINY, "--device", "cpu"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.exception
    full, fast = memory.fit_batches(TINY, 2**30, variants=["full", "fast"], **OPTIONS)
    assert fast.batch > 1.25 * full.batch
    assert str(full.batch) in result.output and "predicted" in result.output


def test_doubling_finds_the_largest_batch_to_an_eighth() -> None:
    for most in (0, 1, 2, 3, 7, 100, 1000):
        found = memory._largest(lambda batch, most=most: batch <= most)
        assert 0.87 * most <= found <= most


def test_amounts_of_memory() -> None:
    assert memory.parse_bytes("24GiB") == 24 * 2**30
    assert memory.parse_bytes("1.5 MB") == 1_500_000
    with pytest.raises(ConfigError, match="24GiB"):
        memory.parse_bytes("24")


@pytest.mark.slow
def test_the_start_up_file_is_measured() -> None:
    made = startup.measure_startup(sys.executable, pairs=3)
    assert made.plain_ms > 0 and made.low_ms <= made.extra_ms <= made.high_ms
