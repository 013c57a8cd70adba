"""`python -m benchmarks.speed`: the tables of docs/speed.md, from runs of `elip bench speed`.

`run` makes the runs that have no file in `docs/results/speed` yet: to repeat one, delete its file.
`report --write` writes the page's tables from the files.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.tables import fill, markdown

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "speed.md"
RESULTS = ROOT / "docs" / "results" / "speed"

RUNS = {
    "vit-b-16": "--model elip-ViT-B-16 --batch 8 --rounds 5 "
    "--variants full,half,level,third,lowres,fast,paper,evit,tome,random",
    "choosing": "--model elip-ViT-B-16 --batch 8 --rounds 15 --variants random,fast --passes step",
    "vit-b-32": "--model elip-ViT-B-32 --batch 8 --rounds 15 --variants full,half,fast,paper "
    "--passes step",
    "albef": "--model elip_albef_pretrain --batch 8 --rounds 3 --variants fused,half,fast,paper "
    "--passes step",
    "blip": "--model elip_blip_pretrain --batch 8 --rounds 3 --variants fused,half,fast,paper "
    "--passes step",
    "eva02-b-16": "--model elip-EVA02-B-16 --batch 8 --rounds 3 --variants full,half,fast "
    "--passes tower,step",
    "pe-core-b-16": "--model elip-PE-Core-B-16 --batch 8 --rounds 3 --variants full,half,fast "
    "--passes tower",
}
"""Options of `elip bench speed` by the name of the run's file."""

SHOWN = {
    "full": "unpruned",
    "fused": "unpruned, fused attention",
    "evit": "cuts of `fast` by EViT",
    "tome": "by ToMe",
    "random": "by random dropping",
}
"""Variants that are no presets."""

PASSES = {"inference": "forward", "tower": "tower", "step": "whole step"}


@dataclass(frozen=True)
class Run:
    """What one run of `elip bench speed` wrote."""

    setting: dict[str, Any]
    rows: list[dict[str, Any]]

    @cached_property
    def by_pass(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Rows by variant and pass."""
        return {(row["variant"], row["measured"]): row for row in self.rows}

    @property
    def variants(self) -> list[str]:
        """Names of the variants, the reference first."""
        return list(dict.fromkeys(row["variant"] for row in self.rows))

    @property
    def passes(self) -> list[str]:
        """Names of the passes in the order of the run."""
        return list(dict.fromkeys(row["measured"] for row in self.rows))

    def counted(self, variant: str, measured: str) -> float:
        """Operations over the reference's."""
        own, first = (self.by_pass[n, measured]["flops"] for n in (variant, self.variants[0]))
        return float(own / first)

    def kept(self, variant: str, measured: str) -> str:
        """What a pass with a backward one keeps for it, over the reference's."""
        own, first = (self.by_pass[n, measured]["memory"] for n in (variant, self.variants[0]))
        return f"{own / first:.2f}"

    def cell(self, variant: str, measured: str) -> str:
        """Time over the reference's with its range, and the counted operations."""
        row = self.by_pass[variant, measured]
        if variant == self.variants[0]:
            return f"{row['seconds']:.2f} s"
        return (
            f"{row['ratio']:.2f} ({row['low']:.2f}-{row['high']:.2f}) "
            f"[{self.counted(variant, measured):.2f}]"
        )


def read(name: str) -> Run:
    """Read a run's file.

    Args:
        name: A key of `RUNS`.

    Returns:
        The run.
    """
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return Run(found["setting"], found["rows"])


def tables() -> dict[str, str]:
    """Write the page's tables.

    Returns:
        Tables in Markdown by their marks.
    """
    return {
        "speed of ViT-B/16": _all_passes(read("vit-b-16")),
        "speed of LAVIS": _pretraining(read("albef"), read("blip")),
        "speed of other towers": _others(("vit-b-32", "eva02-b-16", "pe-core-b-16")),
    }


def _all_passes(run: Run) -> str:
    header = ("", *(PASSES[name] for name in run.passes), "kept for backward (tower)")
    rows = [
        (_name(name), *(run.cell(name, each) for each in run.passes), run.kept(name, "tower"))
        for name in run.variants
    ]
    return markdown(header, rows)


def _pretraining(*runs: Run) -> str:
    header = ("", *(f"`{run.setting['model']}`" for run in runs), "kept for backward")
    rows = [
        (
            _name(name),
            *(run.cell(name, "step") for run in runs),
            ", ".join(run.kept(name, "step") for run in runs),
        )
        for name in runs[0].variants
    ]
    return markdown(header, rows)


def _others(names: tuple[str, ...]) -> str:
    return markdown(("model", "pass", "unpruned", "`half`", "`fast`"), _lines(names))


def _lines(names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for run in map(read, names):
        for i, each in enumerate(run.passes):
            model = "" if i else "`{model}`, {image_size} px, batch {batch}".format(**run.setting)
            cells = (run.cell(name, each) for name in (run.variants[0], "half", "fast"))
            yield model, PASSES[each], *cells


def _name(variant: str) -> str:
    return SHOWN.get(variant, f"`{variant}`")


def main() -> None:
    """Make the runs that are missing, or write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command")
    run = commands.add_parser("run", help="make the runs that have no file yet")
    run.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RUNS)}; all of them")
    report = commands.add_parser("report", help="print the tables")
    report.add_argument("--write", action="store_true", help="write them into docs/speed.md")
    given = parser.parse_args()
    if given.command == "run":
        unknown = [name for name in given.names if name not in RUNS]
        if unknown:
            parser.error(f"{unknown} are not known; choose from {list(RUNS)}")
        for name in given.names or RUNS:
            if not (RESULTS / f"{name}.json").exists():
                _run(name)
    elif given.write:
        PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), tables()), encoding="utf-8")
    else:
        print("\n".join(tables().values()))


def _run(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "elip_plugin", "bench", "speed", *RUNS[name].split()]
        subprocess.run([*words, "-o", folder], check=True)
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{name}.json").write_bytes((Path(folder) / "speed.json").read_bytes())


if __name__ == "__main__":
    main()
