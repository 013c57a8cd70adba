"""Find the cheapest plan that keeps a bound on half of the pictures; confirm it on the others."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from elip_plugin.check.neighbors import WAYS, Values
from elip_plugin.check.statistics import bound_for_others, halves
from elip_plugin.config import ElipConfig
from elip_plugin.errors import ConfigError
from elip_plugin.measure.preview import of_strengths
from elip_plugin.patching.pruner import Pruner

STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""How much of what the given plan removes each of the plans that are tried removes."""

CHEAPER = 0.99
"""Counted cost of a forward, over an unpruned one, that a plan must stay below to be tried."""

FEWEST = 100
"""Pictures by which a bound can be shown."""


class Bound(NamedTuple):
    """What the mean of a quantity over pictures must reach; `k` is 0 for the cosine."""

    metric: str
    k: int
    least: float


class Candidate(NamedTuple):
    """A plan, and the counted operations of its forward over those of an unpruned one."""

    config: ElipConfig
    cost: float


class Trial(NamedTuple):
    """What was measured of a candidate."""

    candidate: Candidate
    mean: float  # over the first half of the pictures
    shown: float  # what the mean over the second half is not below, as the first half shows
    holds: bool  # whether that reaches the bound
    other_mean: float  # over the second half, which took no part in the search
    confirmed: bool  # whether that reaches the bound


def parse_bound(text: str) -> Bound:
    """Read a bound such as `overlap@10=0.95`."""
    match = re.fullmatch(r"([\w-]+?)(?:@(\d+))?=([\d.]+)", text.strip())
    metric, k, least = match.groups() if match else ("", None, "")
    known = metric in WAYS and int(k or 0) > 0 if metric != "cosine" else k is None
    with suppress(ValueError):
        if known and 0 < float(least) < 1:
            return Bound(metric if k is None else f"{metric}@{int(k)}", int(k or 0), float(least))
    raise ConfigError(
        f"--bound {text!r} is no bound: write overlap@10=0.95 (the share of the 10 nearest "
        "neighbors that stays where all is pruned), query-overlap@10=... (pruned queries, unpruned "
        "index), index-overlap@10=... (the other way round) or cosine=..., each between 0 and 1"
    )


def candidates(pruner: Pruner, config: ElipConfig) -> list[Candidate]:
    """Return the plans of a config's stages that cost less than no pruning, the mildest first."""
    by_tokens: dict[tuple[int, ...], Candidate] = {}
    for other, plan in of_strengths(pruner, config, STRENGTHS):
        cost = plan.forward_cost(pruner.shape.width)
        by_tokens.setdefault(plan.tokens, Candidate(other, cost))
    cheaper = [candidate for candidate in by_tokens.values() if candidate.cost < CHEAPER]
    if not cheaper:
        raise ConfigError(
            "no keep ratios of this plan are cheaper than no pruning, as counted: see elip plan, "
            "and give another --plan"
        )
    return sorted(cheaper, key=lambda candidate: -candidate.cost)


def search(
    plans: Sequence[Candidate], measure: Callable[[Candidate], Values], bound: Bound, seed: int = 0
) -> list[Trial]:
    """Try plans from the mildest on, until one does not hold; all but the last of them do.

    A plan is tried only if all milder ones hold, so that the confidence is that of one test,
    however many plans there are. `measure` gives the bound's quantity for each picture [N]; `seed`
    is that of the halves and the draws.
    """
    trials: list[Trial] = []
    for candidate in plans:
        values = measure(candidate)
        first, second = halves(len(values), seed)
        shown = bound_for_others(values[first], len(second), seed)
        mean, other = float(values[first].mean()), float(values[second].mean())
        holds, confirmed = shown >= bound.least, other >= bound.least
        trials.append(Trial(candidate, mean, shown, holds, other, confirmed))
        if not holds:
            break
    return trials


def cheapest(trials: Sequence[Trial]) -> Trial | None:
    """Return the trial of the cheapest plan that holds; None if none does."""
    return next((trial for trial in reversed(trials) if trial.holds), None)
