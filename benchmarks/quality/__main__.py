"""`python -m benchmarks.quality`: does pruning keep the quality? Trainings side by side."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from benchmarks.quality import chart, grid, report, results_log
from benchmarks.quality.cost import read_ratios, time_phases
from benchmarks.quality.pairs import read_pairs
from benchmarks.quality.recipe import Recipe, make_recipe
from benchmarks.quality.variants import SETS, VARIANTS
from elip_plugin.data import write_openmoji

app = typer.Typer(add_completion=False)


@app.command()
def main(
    variants: Annotated[
        str, typer.Option(help="Comma-separated variants, or sets of them; --list shows both.")
    ] = "main,leak,remedy,trade",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds, from 0 on; intervals need two.")] = 3,
    family: Annotated[str, typer.Option(help="clip (OpenCLIP), albef or blip (LAVIS).")] = "clip",
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of results; a grid continues there.")
    ] = Path("quality"),
    data: Annotated[
        Path, typer.Option(help="OpenMoji pairs; written there if the folder is not there.")
    ] = Path("data/openmoji"),
    jobs: Annotated[int, typer.Option(min=0, help="Trainings at a time; 0: one per core.")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few variants, pairs and epochs: minutes.")
    ] = False,
    rounds: Annotated[
        int, typer.Option(min=0, help="Rounds for timing steps, before the trainings; 0: none.")
    ] = 9,
    show_list: Annotated[
        bool, typer.Option("--list", help="List variants and sets, and stop.")
    ] = False,
) -> None:
    """Train small models on real pairs, pruned and not, and compare their scores.

    Every training is kept as soon as it is done, so that an interrupted grid continues.
    """
    if show_list:
        _print_list()
        return
    try:
        recipe = make_recipe(family, quick=quick)
        names = grid.choose(["quick"] if quick else variants.split(","))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if not (data / "train.json").exists():
        typer.echo(f"writing the OpenMoji pairs to {data}", err=True)
        write_openmoji(data)
    log = out / "quality.jsonl"
    trainings = grid.wanted(recipe, names, seeds)
    missing = results_log.missing(trainings, results_log.read(log))
    typer.echo(
        f"{len(trainings)} trainings, {len(trainings) - len(missing)} of them done", err=True
    )
    stem = f"{family}{'-quick' if quick else ''}"
    if rounds > 0:
        _time(names, recipe, data, rounds, out / f"{stem}-steps.json")
    _train(missing, data, log, jobs or os.cpu_count() or 1)
    write_report(recipe, out, stem)


def _print_list() -> None:
    table = Table("variant", "what it is", "sets")
    for name, variant in VARIANTS.items():
        table.add_row(name, variant.about, ", ".join(variant.sets))
    console = Console()
    console.print(table)
    for name, about in SETS.items():
        console.print(f"{name}: {about}", highlight=False)


def _time(names: list[str], recipe: Recipe, data: Path, rounds: int, path: Path) -> None:
    typer.echo(f"timing steps, {rounds} rounds in turn: nothing else should run", err=True)
    steps = time_phases(names, recipe, read_pairs(data, "train", recipe.pairs), rounds)
    made = {
        "device": _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__.partition("+")[0],
        "rounds": rounds,
        "recipe": asdict(recipe),
        "steps": steps,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made, indent=1) + "\n")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _train(missing: list[dict[str, Any]], data: Path, log: Path, jobs: int) -> None:
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("epochs", total=sum(row["recipe"]["epochs"] for row in missing))
        grid.train_all(
            missing,
            data,
            log,
            jobs=jobs,
            epoch=lambda: bar.advance(task),
            done=lambda name: console.print(f"done: {name}", highlight=False),
        )


def write_report(recipe: Recipe, out: Path, stem: str) -> None:
    """Print the report of a results log and write its table and chart.

    Args:
        recipe: Whose results to report.
        out: The folder of the log `quality.jsonl` and of the times `STEM-steps.json`.
        stem: Name of the files to write, without ".md" and ".svg".
    """
    ratios = read_ratios(out / f"{stem}-steps.json")
    results = report.select(results_log.read(out / "quality.jsonl"), recipe)
    rows = report.make_report(results, recipe, ratios)
    table = Table(*(report.HEADER[column] for column in report.SHORT))
    for row in rows:
        table.add_row(*(report.cells(row)[column] for column in report.SHORT))
    console = Console()
    console.print(table)
    (out / f"{stem}.md").write_text(report.markdown(rows))
    best = report.best_trade(rows)
    if rows[0].mrr < report.LEARNT:
        console.print("Unpruned training has learnt too little here to compare anything with it.")
    elif best is not None:
        console.print(
            f"cheapest within {100 * report.MARGIN:.0f} points of full's MRR: {best.variant}, "
            f"{best.step:.2f} of its average step"
        )
    if ratios:
        chart.draw(rows, out / f"{stem}.svg")
    typer.echo(f"written: {out / stem}.md" + (f", {out / stem}.svg" if ratios else ""))


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.quality")
