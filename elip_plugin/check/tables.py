"""The tables of a check, as rows of words: for the terminal and the page."""

from __future__ import annotations

from elip_plugin.check.bound import cheapest
from elip_plugin.check.statistics import Estimate
from elip_plugin.check.study import Result

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Heads and rows."""


def describe_plan(result: Result) -> str:
    """Say what the numbers are about."""
    config = result.candidate.config
    keep = ", ".join(f"{stage.keep:g}" for stage in config.stages)
    return (
        f"{result.label}; {len(result.items)} pictures, keep {keep}: counted "
        f"forward {result.candidate.cost:.2f} of the unpruned one"
    )


def measures_table(result: Result) -> Table:
    """Return what was measured over all pictures."""
    rows: list[tuple[str, ...]] = []
    for measure in result.measures:
        both = (measure.unpruned, measure.pruned)
        sides = ("" if value is None else f"{value:.4f}" for value in both)
        change = "" if measure.unpruned is None else "change "
        rows.append((measure.name, *sides, change + _interval(measure.value, bool(change))))
    heads = ("measure", "unpruned", "pruned", "mean, 95% interval")
    if all(measure.unpruned is None for measure in result.measures):  # no texts: nothing to rank
        return heads[::3], [row[::3] for row in rows]
    return heads, rows


def folders_table(result: Result) -> Table:
    """Return the same by folder."""
    heads = ("folder", "pictures", f"overlap@{result.k}", "cosine", "beside all")
    return heads, [
        (part.folder, str(part.pictures), _interval(part.overlap), _interval(part.cosine),
         "lower" if part.lower else "not lower")
        for part in result.folders
    ]  # fmt: skip


def trials_table(result: Result) -> Table:
    """Return the plans that were tried for a bound."""
    heads = ("keep", "counted forward", "first half", "at least, at 95%", "second half", "bound")
    return heads, [
        (
            ", ".join(f"{stage.keep:g}" for stage in trial.candidate.config.stages),
            f"{trial.candidate.cost:.2f}",
            *(f"{value:.4f}" for value in (trial.mean, trial.shown, trial.other_mean)),
            "holds" if trial.holds else "not shown to hold",
        )
        for trial in result.trials
    ]


def verdict(result: Result) -> str:
    """Say whether a bound holds; "" where none was asked for."""
    if result.bound is None:
        return ""
    asked = f"{result.bound.metric} of {result.bound.least:g}"
    best = cheapest(result.trials)
    if best is None:
        return f"No plan that was tried is shown to keep {asked}: embed without pruning."
    keep = ", ".join(f"{stage.keep:g}" for stage in best.candidate.config.stages)
    said = f"keep {keep}, counted forward {best.candidate.cost:.2f}"
    if not best.confirmed:
        return (
            f"{asked}: {said} held on one half of the pictures and not on the other "
            f"({best.other_mean:.4f}): embed without pruning, or give more pictures."
        )
    return (
        f"{asked} holds by {said}: shown on one half of the pictures (at least {best.shown:.4f} at "
        f"95% confidence), confirmed on the other ({best.other_mean:.4f})."
    )


def _interval(value: Estimate, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{value.mean:{sign}.4f} ({value.low:{sign}.4f} to {value.high:{sign}.4f})"
