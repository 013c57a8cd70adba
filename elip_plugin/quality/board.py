"""The scoreboard: each variant's cost, losses and scores, beside unpruned training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from elip_plugin.quality import cost
from elip_plugin.quality.grid import definition
from elip_plugin.quality.recipe import Recipe
from elip_plugin.quality.stats import Difference, difference
from elip_plugin.quality.variants import REFERENCE, VARIANTS

MARGIN = 0.02
"""A score counts as equivalent if its interval ends above the reference less this."""


@dataclass(frozen=True)
class Line:
    """A variant's results, means over its seeds.

    Attributes:
        variant: Its name.
        layers: Share of the token-layers that its training runs through.
        step: Average time of its training step over an unpruned one; None if not timed.
        training_loss: Mean of the last epoch.
        loss: Contrastive loss of the held-out pairs, all tokens.
        loss_gap: That, less the reference's.
        mrr: Mean reciprocal rank of the held-out pairs, all tokens.
        mrr_gap: That, less the reference's.
        recalls: R@1 image to text and text to image, then R@5.
        pruned_mrr: Mean reciprocal rank where the image alone prunes at test time.
    """

    variant: str
    layers: float
    step: float | None
    training_loss: float
    loss: float
    loss_gap: Difference
    mrr: float
    mrr_gap: Difference
    recalls: tuple[float, float, float, float]
    pruned_mrr: float

    @property
    def equivalent(self) -> bool:
        """Whether the score is the reference's within `MARGIN`."""
        return self.mrr_gap.low > -MARGIN


Results = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""Rows of the ledger by variant and seed."""


def select(rows: Iterable[Mapping[str, Any]], recipe: Recipe) -> dict[str, dict[int, Any]]:
    """Find a recipe's results among the ledger's rows.

    Args:
        rows: All rows.
        recipe: The recipe.

    Returns:
        Rows by variant, in the table's order, and seed; without those of a variant that meant
        something else when it was trained.
    """
    own = [row for row in rows if row["recipe"] == asdict(recipe)]
    found: dict[str, dict[int, Any]] = {}
    for name in VARIANTS:
        for row in own:
            if row["variant"] == name and row["definition"] == definition(name):
                found.setdefault(name, {})[row["seed"]] = row
    return found


def gap(results: Results, variant: str, other: str, score: str) -> Difference:
    """Compare two variants by a score of the held-out pairs with all tokens.

    Args:
        results: From `select`.
        variant: The one.
        other: The one that it is compared with.
        score: A key of the scores, such as "mrr".

    Returns:
        The difference.
    """
    one, two = (
        {seed: float(row["scores"]["full"][score]) for seed, row in results[name].items()}
        for name in (variant, other)
    )
    return difference(one, two)


def make_board(results: Results, recipe: Recipe, ratios: Mapping[str, float]) -> list[Line]:
    """Make the table.

    Args:
        results: From `select`; the reference is among them.
        recipe: Their recipe.
        ratios: Times of steps over that of an unpruned one, by their name in `cost.phases`.

    Returns:
        A line per variant.
    """
    lines = []
    for name, seeds in results.items():
        rows = list(seeds.values())

        def over(key: str, rows: list[Any] = rows, mode: str = "full") -> float:
            return float(mean(row["scores"][mode][key] for row in rows))

        lines.append(
            Line(
                variant=name,
                layers=cost.layers(name, recipe),
                step=cost.average(name, ratios),
                training_loss=mean(row["losses"][-1] for row in rows),
                loss=over("loss"),
                loss_gap=gap(results, name, REFERENCE, "loss"),
                mrr=over("mrr"),
                mrr_gap=gap(results, name, REFERENCE, "mrr"),
                recalls=(over("i2t_r1"), over("t2i_r1"), over("i2t_r5"), over("t2i_r5")),
                pruned_mrr=over("mrr", mode="pruned"),
            )
        )
    return lines


TAUGHT = 0.05
"""Mean reciprocal rank from which on the reference has learnt enough for a comparison."""

SHORT = (0, 3, 4, 5, 6, 7, 8)
"""Columns of `HEADER` that a terminal has room for."""

HEADER = (
    "variant",
    "what it is",
    "token-layers",
    "step",
    "seeds",
    "training loss",
    "validation loss (- full)",
    "MRR %",
    "MRR - full",
    "R@1 i2t / t2i",
    "R@5 i2t / t2i",
    "MRR, image-pruned",
)


def cells(line: Line) -> tuple[str, ...]:
    """Write a line out.

    Args:
        line: The line.

    Returns:
        Texts under `HEADER`; percentages, losses in nats, differences with 95% intervals.
    """
    r1, r2, r5, r6 = (100 * value for value in line.recalls)
    return (
        line.variant,
        VARIANTS[line.variant].about,
        f"{line.layers:.2f}",
        "-" if line.step is None else f"{line.step:.2f}",
        str(line.mrr_gap.seeds),
        f"{line.training_loss:.2f}",
        f"{line.loss:.2f} ({signed(line.loss_gap)})",
        f"{100 * line.mrr:.1f}",
        signed(line.mrr_gap, 100, 1),
        f"{r1:.1f} / {r2:.1f}",
        f"{r5:.1f} / {r6:.1f}",
        f"{100 * line.pruned_mrr:.1f}",
    )


def signed(found: Difference, factor: float = 1.0, digits: int = 2) -> str:
    """Write a difference with its interval.

    Args:
        found: The difference.
        factor: 100 for percentages.
        digits: Digits after the point.

    Returns:
        Such as "-1.2 ± 0.9".
    """
    text = f"{factor * found.mean:+.{digits}f}"
    return text if math.isnan(found.half) else f"{text} ± {factor * found.half:.{digits}f}"


def markdown(lines: Iterable[Line]) -> str:
    """Write the table in Markdown.

    Args:
        lines: The lines.

    Returns:
        The table.
    """
    rows = [HEADER, tuple("---" for _ in HEADER), *(cells(line) for line in lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def best_trade(lines: Iterable[Line]) -> Line | None:
    """Find the cheapest training that is as good as unpruned training.

    Args:
        lines: The lines.

    Returns:
        The equivalent line with the lowest average step; None if none was timed.
    """
    good = [line for line in lines if line.step is not None and line.equivalent]
    return min(good, key=lambda line: line.step or 0.0, default=None)
