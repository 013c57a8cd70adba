"""docs/pretrained.md: tables and a chart from the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import results_log
from benchmarks.pretrained import finetuning, labels
from benchmarks.pretrained.plans import MEANINGS, NAMES, SHARES
from benchmarks.pretrained.scores import points
from benchmarks.tables import fill, markdown

DOCS = Path(__file__).parents[2] / "docs"
LOG = DOCS / "results" / "pretrained.jsonl"
PAGES = (DOCS / "pretrained.md", DOCS.parent / "research" / "pretrained.md")
"""For users: a short table; for who wants to know: all rows."""

SHORT = ("ward", "tome", "tofu", "random", NAMES[-1])
CHART = DOCS / "results" / "pretrained.svg"
Rows = Sequence[Mapping[str, Any]]


def line(row: Mapping[str, Any]) -> str:
    """Write a line of the log for a person who waits."""
    overlap = row["overlap"]
    return (
        f"{row['share']:.2f} {row['name']:16} cost {row['cost']:.3f}  R@1 cls "
        f"{points(row['cls']['t2i R@1']['loss'])}  both {points(row['both']['t2i R@1']['loss'])}  "
        f"overlap {overlap['cls']:.3f} {overlap['mean']:.3f}"
    )


def _of(rows: Rows, **wanted: Any) -> list[Mapping[str, Any]]:
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def tables(rows: Rows) -> dict[str, str]:
    """Make the tables of the page by the name of their mark."""
    made = {}
    test = _of(rows, part="test", side=224)
    cells = []
    for share in SHARES:
        for name in NAMES:
            for row in _of(test, share=share, name=name):
                behind = row["both"]["t2i R@1"].get("behind")
                cells.append(
                    (
                        f"{row['cost']:.2f}",
                        f"`{name}`" if name != NAMES[-1] else f"{name}, {row['picture']} px",
                        points(row["cls"]["t2i R@1"]["loss"]),
                        points(row["both"]["t2i R@1"]["loss"]),
                        points(row["both"]["t2i R@5"]["loss"]),
                        points(row["both"]["i2t R@1"]["loss"]),
                        f"{row['overlap']['cls']:.2f}, {row['overlap']['mean']:.2f}",
                        f"{row['mixed']['cls']:.3f}, {row['mixed']['mean']:.3f}",
                        points(behind) if behind else "",
                    )
                )
    header = (
        "operations", "plan", "R@1, class token", "R@1, both", "R@5, both", "image to text R@1",
        "neighbors that stay", "itself in a mixed index", "`ward` is ahead by",
    )  # fmt: skip
    made["pretrained all"] = markdown(header, cells)
    made["pretrained"] = _short(test)
    made["pretrained plans"] = markdown(
        ("plan", "what it does"), [(f"`{n}`" if n != NAMES[-1] else n, MEANINGS[n]) for n in NAMES]
    )
    large = _of(rows, part="test", side=518)
    if large:
        made["pretrained 518"] = markdown(
            ("operations", "plan", "R@1, both", "neighbors that stay"),
            [
                (
                    f"{row['cost']:.2f}", f"`{row['name']}`",
                    points(row["both"]["t2i R@1"]["loss"]),
                    f"{row['overlap']['cls']:.2f}, {row['overlap']['mean']:.2f}",
                )
                for row in large
            ],
        )  # fmt: skip
    return made


def _short(test: Rows) -> str:
    """Make the table of losses of R@1 by both features, and of neighbors, of some plans."""

    def cell(name: str, share: float) -> str:
        (row,) = _of(test, share=share, name=name)
        loss = 100 * row["both"]["t2i R@1"]["loss"][0]
        text = f"{loss:+.1f}, {row['overlap']['cls']:.2f}"
        return f"{text} ({row['cost']:.2f})" if name == NAMES[-1] else text

    header = ("operations", *(f"`{name}`" for name in SHORT[:-1]), f"{SHORT[-1]} (operations)")
    return markdown(
        header, [(f"{share:.2f}", *(cell(name, share) for name in SHORT)) for share in SHARES]
    )


def draw(rows: Rows, path: Path) -> None:
    """Draw the loss of recall against the operations.

    Args:
        rows: The log.
        path: An .svg file.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "elip"  # the same bytes for the same rows
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    axes.axhline(0, color="#cccccc", linewidth=0.8, zorder=0)
    for place, name in enumerate(NAMES):
        own = sorted(_of(rows, part="test", side=224, name=name), key=lambda row: row["cost"])
        if not own:
            continue
        losses = [[100 * x for x in row["both"]["t2i R@1"]["loss"]] for row in own]
        middle = [loss[0] for loss in losses]
        bars = [[m - loss[1] for m, loss in zip(middle, losses)],
                [loss[2] - m for m, loss in zip(middle, losses)]]  # fmt: skip
        axes.errorbar(
            [row["cost"] for row in own], middle, yerr=bars, fmt="o-", color=f"C{place}",
            linewidth=2.4 if name == NAMES[0] else 1, elinewidth=0.6, markersize=3, label=name,
        )  # fmt: skip
    axes.set_ylim(-8, 0.6)
    axes.set_xlabel("counted operations of the blocks, of unpruned")
    axes.set_ylabel("R@1 of photographs by captions, less unpruned, points")
    axes.set_title(
        "DINOv2 ViT-S/14, no training; 95% intervals over photographs and heads", fontsize=10
    )
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def write(rows: Rows) -> None:
    """Write the pages' tables and the chart."""
    tuned = results_log.read(finetuning.LOG)
    made = tables(rows) | {
        f"finetuning {name}": finetuning.table(tuned, *of) for name, of in finetuning.TABLES.items()
    }
    made["labels"] = labels.table(results_log.read(labels.LOG))
    for path in PAGES:
        path.write_text(fill(path.read_text(), made))
    draw(rows, CHART)
