"""`elip bench quality`: does pruning keep the quality? Trainings side by side."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer


def quality(
    variants: Annotated[
        str, typer.Option(help="Comma-separated variants, or sets of them; --list shows both.")
    ] = "main,leak,remedy,trade",
    seeds: Annotated[int, typer.Option(help="Seeds, from 0 on; intervals need two.")] = 3,
    family: Annotated[str, typer.Option(help="clip (OpenCLIP), albef or blip (LAVIS).")] = "clip",
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of results; a grid continues there.")
    ] = Path("quality"),
    data: Annotated[
        Path, typer.Option(help="OpenMoji pairs; written there if the folder is not there.")
    ] = Path("data/openmoji"),
    jobs: Annotated[int, typer.Option(help="Trainings at a time; 0 for one per core.")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few variants, pairs and epochs: minutes.")
    ] = False,
    rounds: Annotated[
        int, typer.Option(help="Rounds for timing steps, before the trainings; 0 for none.")
    ] = 9,
    show_list: Annotated[
        bool, typer.Option("--list", help="List variants and sets, and stop.")
    ] = False,
) -> None:
    """Train small models on real pairs, pruned and not, and compare their scores.

    Every training is kept as soon as it is done, so that an interrupted grid continues.
    """
    from elip_plugin.errors import ConfigError
    from elip_plugin.quality import grid, ledger
    from elip_plugin.quality.recipe import make_recipe

    if show_list:
        _print_list()
        return
    for name, value, least in (("seeds", seeds, 1), ("jobs", jobs, 0), ("rounds", rounds, 0)):
        if value < least:
            raise ConfigError(f"--{name} must be {least} or more, got {value}")
    recipe = make_recipe(family, quick=quick)
    names = grid.choose(["quick"] if quick else variants.split(","))
    _write_data(data)
    results = out / "quality.jsonl"
    trainings = grid.wanted(recipe, names, seeds)
    missing = ledger.missing(trainings, ledger.read(results))
    typer.echo(
        f"{len(trainings)} trainings, {len(trainings) - len(missing)} of them done", err=True
    )
    times = out / f"{family}{'-quick' if quick else ''}-steps.json"
    if rounds > 0:
        _time(names, recipe, data, rounds, times)
    _train(missing, data, results, jobs or os.cpu_count() or 1)
    _report(recipe, ledger.read(results), times, out)


def _print_list() -> None:
    from rich.console import Console
    from rich.table import Table

    from elip_plugin.quality.variants import SETS, VARIANTS

    table = Table("variant", "what it is", "sets")
    for name, variant in VARIANTS.items():
        table.add_row(name, variant.about, ", ".join(variant.sets))
    console = Console()
    console.print(table)
    for name, about in SETS.items():
        console.print(f"{name}: {about}", highlight=False)


def _write_data(data: Path) -> None:
    from elip_plugin.data import write_openmoji

    if not (data / "train.json").exists():
        typer.echo(f"writing the OpenMoji pairs to {data}", err=True)
        write_openmoji(data)


def _time(names: list[str], recipe: Any, data: Path, rounds: int, path: Path) -> None:
    import torch

    from elip_plugin.measure.speed import processor
    from elip_plugin.quality.cost import time_phases
    from elip_plugin.quality.pairs import read_pairs

    typer.echo(f"timing steps, {rounds} rounds in turn: nothing else should run", err=True)
    times = time_phases(names, recipe, read_pairs(data, "train", recipe.pairs), rounds)
    path.parent.mkdir(parents=True, exist_ok=True)
    made = {
        "device": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__.partition("+")[0],
        "rounds": rounds,
        "recipe": asdict(recipe),
        "steps": {
            name: {"seconds": t.median, "ratio": t.ratio, "low": t.spread[0], "high": t.spread[1]}
            for name, t in times.items()
        },
    }
    path.write_text(json.dumps(made, indent=1) + "\n")


def _train(missing: list[Any], data: Path, results: Path, jobs: int) -> None:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    from elip_plugin.quality.grid import train_all

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("epochs", total=sum(row["recipe"]["epochs"] for row in missing))
        train_all(
            missing,
            data,
            results,
            jobs=jobs,
            epoch=lambda: bar.advance(task),
            done=lambda what: console.print(f"done: {what}", highlight=False),
        )


def _report(recipe: Any, rows: list[Any], times: Path, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from elip_plugin.quality import board, chart

    steps = json.loads(times.read_text())["steps"] if times.exists() else {}
    results = board.select(rows, recipe)
    lines = board.make_board(results, recipe, {name: t["ratio"] for name, t in steps.items()})
    table = Table(*(board.HEADER[column] for column in board.SHORT))
    for line in lines:
        table.add_row(*(board.cells(line)[column] for column in board.SHORT))
    console = Console()
    console.print(table)
    stem = times.name.removesuffix("-steps.json")
    (out / f"{stem}.md").write_text(board.markdown(lines))
    best = board.best_trade(lines)
    if lines[0].mrr < board.TAUGHT:
        console.print("Unpruned training has learnt too little here to compare anything with it.")
    elif best is not None:
        console.print(
            f"cheapest within {100 * board.MARGIN:.0f} points of full's MRR: {best.variant}, "
            f"{best.step:.2f} of its average step"
        )
    if steps:
        chart.draw(lines, out / f"{stem}.svg")
    typer.echo(f"written: {out / stem}.md" + (f", {out / stem}.svg" if steps else ""))
