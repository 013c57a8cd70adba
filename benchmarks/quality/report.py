"""The report: each variant's cost, losses and scores, beside unpruned training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from benchmarks.quality import cost
from benchmarks.quality.recipe import Recipe
from benchmarks.quality.stats import Difference, difference
from benchmarks.quality.variants import REFERENCE, VARIANTS

MARGIN = 0.02
"""A score counts as equivalent if its interval ends above the reference less this."""


@dataclass(frozen=True)
class ReportRow:
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
"""Rows of the results log by variant and seed."""


def select(rows: Iterable[Mapping[str, Any]], recipe: Recipe) -> dict[str, dict[int, Any]]:
    """Find a recipe's results among the rows of the log.

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
            if row["variant"] == name and row["definition"] == VARIANTS[name].definition:
                found.setdefault(name, {})[row["seed"]] = row
    return found


def compare(results: Results, variant: str, other: str, score: str) -> Difference:
    """Compute the difference of two variants in a score of the held-out pairs, all tokens.

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


def make_report(results: Results, recipe: Recipe, ratios: Mapping[str, float]) -> list[ReportRow]:
    """Build the table.

    Args:
        results: From `select`; the reference is among them.
        recipe: Their recipe.
        ratios: Times of steps over that of an unpruned one, by their name in `cost.phases`.

    Returns:
        A row per variant.
    """
    rows = []
    for name, seeds in results.items():
        found = list(seeds.values())

        def over(key: str, found: list[Any] = found, mode: str = "full") -> float:
            return float(mean(row["scores"][mode][key] for row in found))

        rows.append(
            ReportRow(
                variant=name,
                layers=cost.layers(name, recipe),
                step=cost.average(name, ratios),
                training_loss=mean(row["losses"][-1] for row in found),
                loss=over("loss"),
                loss_gap=compare(results, name, REFERENCE, "loss"),
                mrr=over("mrr"),
                mrr_gap=compare(results, name, REFERENCE, "mrr"),
                recalls=(over("i2t_r1"), over("t2i_r1"), over("i2t_r5"), over("t2i_r5")),
                pruned_mrr=over("mrr", mode="pruned"),
            )
        )
    return rows


LEARNT = 0.05
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


def cells(row: ReportRow) -> tuple[str, ...]:
    """Write a row's cells.

    Args:
        row: The row.

    Returns:
        Texts under `HEADER`; percentages, losses in nats, differences with 95% intervals.
    """
    r1, r2, r5, r6 = (100 * value for value in row.recalls)
    return (
        row.variant,
        VARIANTS[row.variant].about,
        f"{row.layers:.2f}",
        "-" if row.step is None else f"{row.step:.2f}",
        str(row.mrr_gap.seeds),
        f"{row.training_loss:.2f}",
        f"{row.loss:.2f} ({signed(row.loss_gap)})",
        f"{100 * row.mrr:.1f}",
        signed(row.mrr_gap, 100, 1),
        f"{r1:.1f} / {r2:.1f}",
        f"{r5:.1f} / {r6:.1f}",
        f"{100 * row.pruned_mrr:.1f}",
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


def markdown(rows: Iterable[ReportRow]) -> str:
    """Write the table in Markdown.

    Args:
        rows: The rows.

    Returns:
        The table.
    """
    texts = [HEADER, tuple("---" for _ in HEADER), *(cells(row) for row in rows)]
    return "".join(f"| {' | '.join(text)} |\n" for text in texts)


def best_trade(rows: Iterable[ReportRow]) -> ReportRow | None:
    """Find the cheapest training that is as good as unpruned training.

    Args:
        rows: The rows.

    Returns:
        The equivalent row with the lowest average step; None if none was timed.
    """
    good = [row for row in rows if row.step is not None and row.equivalent]
    return min(good, key=lambda row: row.step or 0.0, default=None)
