"""Find the cheapest plan that keeps a bound on half of the pictures; confirm it on the others."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from elip_plugin.check.neighbors import WAYS, Values
from elip_plugin.check.statistics import bound_for_others, halves
from elip_plugin.config import ElipConfig
from elip_plugin.errors import ConfigError, PlanError
from elip_plugin.measure.preview import plan_for, scaled
from elip_plugin.patching.pruner import Pruner

STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""How much of what the given plan removes is removed by each plan of the ladder."""

CHEAPER = 0.99
"""Counted cost of a forward, over an unpruned one, above which a plan is not worth its drift."""

FEWEST = 100
"""Pictures by which a bound can be shown."""


class Bound(NamedTuple):
    """What the mean of a quantity over pictures must reach; `k` is 0 for the cosine."""

    metric: str
    k: int
    least: float


class Rung(NamedTuple):
    """A plan of a ladder.

    Attributes:
        config: What it prunes.
        cost: Counted operations of a forward, over an unpruned one.
    """

    config: ElipConfig
    cost: float


class Tried(NamedTuple):
    """What a plan was found to do.

    Attributes:
        rung: The plan.
        mean: Mean over the first half of the pictures.
        shown: What the mean over the second half is not below, as the first half shows.
        holds: Whether that reaches the bound.
        other_mean: Mean over the second half; it was not looked at in the search.
        confirmed: Whether that reaches the bound.
    """

    rung: Rung
    mean: float
    shown: float
    holds: bool
    other_mean: float
    confirmed: bool


def parse_bound(text: str) -> Bound:
    """Read a bound such as `overlap@10=0.95`.

    Args:
        text: What the user gave.

    Returns:
        The bound.

    Raises:
        ConfigError: If it is none.
    """
    found = re.fullmatch(r"([\w-]+?)(?:@(\d+))?=([\d.]+)", text.strip())
    metric, k, least = found.groups() if found else ("", None, "")
    known = metric in WAYS and int(k or 0) > 0 if metric != "cosine" else k is None
    with suppress(ValueError):
        if known and 0 < float(least) < 1:
            return Bound(metric if k is None else f"{metric}@{int(k)}", int(k or 0), float(least))
    raise ConfigError(
        f"--bound {text!r} is no bound: write overlap@10=0.95 (the share of the 10 nearest "
        "neighbors that stays where all is pruned), query-overlap@10=... (pruned queries, unpruned "
        "index), index-overlap@10=... (the other way round) or cosine=..., each between 0 and 1"
    )


def ladder(pruner: Pruner, config: ElipConfig) -> list[Rung]:
    """Return plans of the same stages that remove less and more, the mildest first.

    Args:
        pruner: That of the model.
        config: The plan that the user gave, which is one of them.

    Returns:
        Plans that fit the tower and are cheaper than no pruning.

    Raises:
        ConfigError: If there is none.
    """
    shape = pruner.shape
    rungs: dict[tuple[int, ...], Rung] = {}
    for strength in STRENGTHS:
        with suppress(ConfigError, PlanError):  # its reducer fixes the ratio, or no token is left
            made = config if strength == 1 else scaled(config, strength, shape.num_patches)
            planned = plan_for(pruner, made)
            rungs.setdefault(planned.tokens, Rung(made, planned.forward_cost(shape.width)))
    cheaper = [rung for rung in rungs.values() if rung.cost < CHEAPER]
    if not cheaper:
        raise ConfigError(
            "no keep ratios of this plan are cheaper than no pruning, as counted: see elip plan, "
            "and give another --plan"
        )
    return sorted(cheaper, key=lambda rung: -rung.cost)


def search(
    rungs: Sequence[Rung], measure: Callable[[Rung], Values], bound: Bound, seed: int = 0
) -> list[Tried]:
    """Try plans from the mildest on, until one does not hold.

    A plan is tried only if all milder ones hold, so that the confidence is that of one test,
    however long the ladder is.

    Args:
        rungs: The plans, the mildest first.
        measure: Measures the bound's quantity for each picture [N].
        bound: The bound.
        seed: Of the halves and the draws.

    Returns:
        The plans that were tried; all but the last of them hold.
    """
    tried: list[Tried] = []
    for rung in rungs:
        values = measure(rung)
        first, second = halves(len(values), seed)
        shown = bound_for_others(values[first], len(second), seed)
        mean, other = float(values[first].mean()), float(values[second].mean())
        tried.append(Tried(rung, mean, shown, shown >= bound.least, other, other >= bound.least))
        if not tried[-1].holds:
            break
    return tried


def chosen(tried: Sequence[Tried]) -> Tried | None:
    """Return the cheapest plan that holds; None if none does."""
    holding = [each for each in tried if each.holds]
    return holding[-1] if holding else None
