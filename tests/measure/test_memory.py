"""The largest batch that fits: predicted from what autograd keeps, or found by doubling."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from entry_points import elip

from elip_plugin import create
from elip_plugin.errors import ConfigError
from elip_plugin.measure import memory
from elip_plugin.measure.variants import PASSES, make_variants

TINY = "ViT-tiny"


@pytest.fixture(scope="module")
def host_model() -> Any:
    pytest.importorskip("open_clip")
    return create(TINY)


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


@pytest.mark.parametrize("name", ["full", "fast"])
def test_predicted_memory_is_what_a_step_takes(host_model: Any, name: str) -> None:
    (fit,) = memory.fit_batches(host_model, 2**30, variants=[name])
    batch = 64  # so many that activations outweigh gradients, which take their place
    weights = list(host_model.model.parameters())
    (variant,) = make_variants(host_model, [name], batch=batch).values()
    optimizer = torch.optim.AdamW(weights)
    step = partial(PASSES["step"].run, variant, optimizer)
    step()
    optimizer.zero_grad(set_to_none=True)
    there = 3 * sum(p.numel() * p.element_size() for p in weights)  # weights and two moments
    assert fit.fixed + batch * fit.per_pair == pytest.approx(there + peak_bytes(step), rel=0.1)
    assert fit.fixed + fit.batch * fit.per_pair <= 2**30
    assert fit.fixed + (fit.batch + 1) * fit.per_pair > 2**30


def test_pruning_fits_more_pairs(host_model: Any) -> None:
    full, fast = memory.fit_batches(host_model, 2**30, variants=["full", "fast"])
    assert fast.batch > 1.25 * full.batch
    output = elip(f"bench memory --fit 1GiB --model {TINY} --device cpu")
    assert str(full.batch) in output and "predicted" in output


def test_doubling_finds_the_largest_batch_to_an_eighth() -> None:
    for most in (0, 1, 2, 3, 7, 100, 1000):
        found = memory._largest(lambda batch, most=most: batch <= most)
        assert 0.87 * most <= found <= most


def test_amounts_of_memory() -> None:
    assert memory.parse_bytes("24GiB") == 24 * 2**30
    assert memory.parse_bytes("1.5 MB") == 1_500_000
    with pytest.raises(ConfigError, match="24GiB"):
        memory.parse_bytes("24")
