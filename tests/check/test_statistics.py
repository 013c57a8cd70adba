"""An interval holds the mean as often as it says; a bound holds for the pictures not looked at."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from elip_plugin.check import bound as bounds
from elip_plugin.check.bound import Bound, Candidate, cheapest, parse_bound, search
from elip_plugin.check.neighbors import Values, overlaps
from elip_plugin.check.statistics import bound_for_others, estimate, halves
from elip_plugin.config import ElipConfig
from elip_plugin.errors import ConfigError

DRAWS = 200
FEW = 300
"""Resampled sets per interval here: enough for a count of how often it holds."""

PLANS = [Candidate(ElipConfig.preset("half"), cost) for cost in (0.9, 0.75, 0.6, 0.5)]


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    from elip_plugin.check import statistics

    made = partial(statistics.resampled_means, draws=FEW)
    monkeypatch.setattr(statistics, "resampled_means", made)


def shares(count: int, bad: float, seed: int, k: int = 10) -> Values:
    """Overlaps as they are: most pictures keep nearly all neighbors, a few lose many."""
    generator = np.random.default_rng(seed)
    stays = np.where(generator.random(count) < bad, 0.4, 0.985)
    return generator.binomial(k, stays) / k


def test_an_interval_holds_the_mean() -> None:
    everything = shares(20_000, 0.05, 0)
    generator, held = np.random.default_rng(1), 0
    for seed in range(DRAWS):
        (found,) = estimate(generator.choice(everything, 150)[:, None], seed)
        held += found.low <= everything.mean() <= found.high
    assert 0.91 * DRAWS <= held <= 0.98 * DRAWS


def test_equal_seeds_give_equal_intervals() -> None:
    values = shares(50, 0.1, 0)[:, None]
    assert estimate(values, 3) == estimate(values, 3) != estimate(values, 4)


@pytest.mark.parametrize("bad", [0.002, 0.03, 0.3])
@pytest.mark.parametrize("count", [100, 600])
def test_the_bound_of_one_half_holds_on_the_other(bad: float, count: int) -> None:
    """In 95 of 100 draws or more, for rare faults and few pictures, too."""
    held, margins = 0, []
    for seed in range(DRAWS):
        values = shares(count, bad, seed)
        first, second = halves(count, seed)
        shown = bound_for_others(values[first], len(second), seed)
        held += values[second].mean() >= shown
        margins.append(values[first].mean() - shown)
    assert held >= 0.94 * DRAWS  # 95%, and one standard error of so many draws
    # And it is not idle: both halves vary, and one picture more has the value 0.
    spread = np.sqrt(2 * (values.var() + 2 / count) / (count / 2))
    assert np.mean(margins) < 2.5 * spread + 2 / count


def test_the_end_of_an_interval_would_hold_too_rarely() -> None:
    """Why the second half's variation, and a picture that fails, are part of the bound."""
    held = 0
    for seed in range(DRAWS):
        values = shares(600, 0.03, seed)
        first, second = halves(600, seed)
        (found,) = estimate(values[first][:, None], seed)
        held += values[second].mean() >= found.low
    assert held < 0.93 * DRAWS


def test_the_cheapest_plan_that_is_found_holds_on_the_second_half() -> None:
    """Of a ladder, whose plans lose more and more, among them one just at the bound."""
    bound = Bound("overlap@10", 10, 0.95)
    confirmed, found = 0, []
    for seed in range(DRAWS):
        ladder = dict(zip(PLANS, (shares(600, bad, seed) for bad in (0.0, 0.02, 0.06, 0.2))))
        best = cheapest(search(PLANS, ladder.__getitem__, bound, seed))
        found.append(None if best is None else best.candidate.cost)
        confirmed += best is None or best.confirmed
    assert confirmed >= 0.95 * DRAWS
    # The second plan's mean is 0.973, the third's is 0.950: mostly the second is found.
    assert found.count(0.75) > 0.6 * DRAWS and 0.5 not in found


def test_nothing_is_tried_behind_a_plan_that_does_not_hold() -> None:
    asked = []

    def measure(candidate: Candidate) -> Values:
        asked.append(candidate.cost)
        return shares(400, 0.0 if candidate.cost != 0.75 else 0.5, 0)

    tried = search(PLANS, measure, Bound("overlap@10", 10, 0.9))
    assert asked == [0.9, 0.75] and [each.holds for each in tried] == [True, False]
    none = search(PLANS, measure, Bound("overlap@10", 10, 0.999))
    assert cheapest(none) is None and len(none) == 1


def test_a_planted_drift_is_found() -> None:
    """A twentieth of the pictures is moved a little: the bound fails, and they are the worst."""
    generator = np.random.default_rng(0)
    full = generator.normal(size=(800, 32)).astype(np.float32)
    full /= np.linalg.norm(full, axis=1, keepdims=True)
    moved = generator.choice(800, 40, replace=False)

    def pruned(far: float) -> Values:
        made = full + 1e-4 * generator.normal(size=full.shape)
        made[moved] += far * generator.normal(size=(40, 32))
        made /= np.linalg.norm(made, axis=1, keepdims=True)
        return overlaps(full, made.astype(np.float32), [10])["overlap@10"]

    bound = Bound("overlap@10", 10, 0.98)
    assert cheapest(search(PLANS[:1], lambda plan: pruned(0.0), bound)) is not None
    drifted = pruned(0.1)
    assert cheapest(search(PLANS[:1], lambda plan: drifted, bound)) is None
    assert drifted.mean() > 0.9  # on the whole it hardly shows
    assert len({*np.argsort(drifted)[:40]} & {*moved}) >= 38


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("overlap@10=0.95", Bound("overlap@10", 10, 0.95)),
        ("query-overlap@5=.9", Bound("query-overlap@5", 5, 0.9)),
        ("index-overlap@1=0.5", Bound("index-overlap@1", 1, 0.5)),
        ("cosine=0.99", Bound("cosine", 0, 0.99)),
    ],
)
def test_bounds(text: str, made: Bound) -> None:
    assert parse_bound(text) == made


@pytest.mark.parametrize(
    "text", ["overlap@10", "overlap=0.9", "overlap@0=0.9", "overlap@10=95", "overlap@10=1",
             "overlap@10=0", "cosine@3=0.9", "recall@1=0.9", "", "overlap@10=0.9.9"]
)  # fmt: skip
def test_what_is_no_bound(text: str) -> None:
    with pytest.raises(ConfigError, match="is no bound: write overlap@10=0"):
        parse_bound(text)
    assert bounds.FEWEST >= 100
