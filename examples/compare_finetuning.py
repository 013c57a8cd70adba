"""Put reports of `finetune_transformers.py` side by side: a table, and the losses as a picture.

    python examples/compare_finetuning.py none-*.json half-*.json -o losses.svg

Reports with the same `--elip` and number of steps are one row, with the range over its seeds.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

COLUMNS = {
    "processor s/step": "cpu_seconds_per_step",
    "s/step": "seconds_per_step",
    "MiB": "peak_MiB",
    "i2t R@1": "image_to_text_R@1",
    "t2i R@1": "text_to_image_R@1",
    "i2t R@5": "image_to_text_R@5",
    "t2i R@5": "text_to_image_R@5",
}


def group_of(report: dict[str, Any]) -> tuple[str, int]:
    """Return what makes reports one row."""
    return report["elip"], report["steps"]


def read(paths: Iterable[Path]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Read reports, grouped into rows."""
    reports = sorted((json.loads(path.read_text()) for path in paths), key=group_of)
    return {key: list(rows) for key, rows in itertools.groupby(reports, group_of)}


def table(groups: dict[tuple[str, int], list[dict[str, Any]]]) -> str:
    """Return the rows as Markdown."""
    lines = [f"| `--elip` | steps | seeds | {' | '.join(COLUMNS)} |", "|---" * 10 + "|"]
    for (elip, steps), reports in groups.items():
        cells = []
        for key in COLUMNS.values():
            low, high = (pick(report[key] for report in reports) for pick in (min, max))
            digits = 0 if low > 100 else 2 if key.endswith("per_step") else 1
            cells.append(f"{low:,.{digits}f}-{high:,.{digits}f}")
        lines.append(f"| `{elip}` | {steps} | {len(reports)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(groups: dict[tuple[str, int], list[dict[str, Any]]], path: Path) -> None:
    """Draw the mean training loss of each row over its steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    for (elip, steps), reports in groups.items():
        means = [sum(losses) / len(reports) for losses in zip(*(r["losses"] for r in reports))]
        at = [10 * (i + 1) for i in range(len(means))]  # the example logs every ten steps
        axes.plot(at, means, label=f"{elip}, {steps} steps")
    axes.set(xlabel="step", ylabel="training loss")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)
    pyplot.close(figure)


def main() -> None:
    """Print the table, and draw the losses if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("reports", type=Path, nargs="+", help="files that --out wrote")
    parser.add_argument("-o", "--out", type=Path, help="a picture to write: .svg or .png")
    given = parser.parse_args()
    groups = read(given.reports)
    print(table(groups))
    if given.out:
        draw(groups, given.out)


if __name__ == "__main__":
    main()
