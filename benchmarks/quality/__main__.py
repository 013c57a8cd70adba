"""`python -m benchmarks.quality`: does pruning keep the quality? Trainings side by side."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import results_log
from benchmarks.board.command import print_boards, print_list, train_missing, write_times
from benchmarks.board.grid import wanted
from benchmarks.board.options import read_budgets, read_seeds, read_variants
from benchmarks.board.own import add_reducers
from benchmarks.board.questions import needed
from benchmarks.board.report import answers
from benchmarks.board.variants import VARIANTS
from benchmarks.data.emojis import write_emojis
from benchmarks.quality import grid, large, page
from benchmarks.quality.pairs import read_pairs
from benchmarks.quality.questions import MRR, QUESTIONS
from benchmarks.quality.recipe import RECIPES, Recipe, make_recipe
from elip_plugin import ElipError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Train small models with and without pruning, and compare their scores.",
)
Out = Annotated[
    Path, typer.Option("--out", "-o", help="Folder of log and times; it goes on there.")
]
Data = Annotated[Path, typer.Option(help="Emojis; made there if the folder is not there.")]
Cache = Annotated[Path, typer.Option(help="Folder of the npm package and of starting weights.")]
Reducers = Annotated[
    Path | None,
    typer.Option(help="A Python file that registers reducers: half of the tokens by each."),
]
DATA, CACHE, RESULTS = Path("data/emojis"), Path("data/cache"), page.RESULTS


@app.command()
def train(
    variants: Annotated[
        str, typer.Option(help='Variants, joined by ";" ; see the command list.')
    ] = "",
    budgets: Annotated[
        str, typer.Option(help="steps, operations, or both: as many as unpruned training.")
    ] = "steps,operations",
    regime: Annotated[str, typer.Option(help="scratch, or continued.")] = "scratch",
    seeds: Annotated[str, typer.Option(help="Such as 0-7, 3 or 0,2,5.")] = "0-7",
    questions: Annotated[
        bool, typer.Option("--questions", help="All trainings that the questions need.")
    ] = False,
    out: Out = RESULTS,
    data: Data = DATA,
    cache: Cache = CACHE,
    jobs: Annotated[int, typer.Option(min=0, help="Trainings at a time; 0: one per core.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, or cuda.")] = "cpu",
    precision: Annotated[str, typer.Option(help="fp32, or bf16 for autocast.")] = "fp32",
    quick: Annotated[bool, typer.Option("--quick", help="Few pairs and epochs: minutes.")] = False,
    reducers: Reducers = None,
) -> None:
    """Train variants; every result is kept as soon as it is there, and an interrupted grid goes on.

    A row is trained anew from scratch if `--out` is a folder without a log.
    """
    try:
        recipes = {name: make_recipe(name, quick=quick) for name in RECIPES}
        own = Recipe(**{**asdict(make_recipe(regime, quick=quick)), "precision": precision})
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    variants = ";".join([variants, *_add(reducers)])
    chosen, asked = read_variants(variants), read_budgets(budgets)
    rows = (
        needed(QUESTIONS, recipes) if questions else wanted(own, chosen, asked, read_seeds(seeds))
    )
    _make(data, cache)
    train_all = partial(
        grid.train_all, data=data, cache_folder=cache, jobs=jobs or os.cpu_count() or 1,
        device=device, reducers=reducers,
    )  # fmt: skip
    train_missing(rows, out / page.LOG, train_all, MRR)
    _print(out, recipes if questions else {regime: own})


def _add(reducers: Path | None) -> list[str]:
    """Add the rows of somebody's reducers."""
    try:
        return [] if reducers is None else add_reducers(reducers)
    except (ValueError, ElipError) as error:
        raise typer.BadParameter(str(error)) from error


def _make(data: Path, cache: Path) -> None:
    if not data.exists():
        typer.echo(f"making the emojis in {data}", err=True)
        write_emojis(data, cache, progress=typer.echo)


@app.command("large")
def train_large(
    train_data: Annotated[str, typer.Option(help="Shards, such as 'cc3m/{00000..00331}.tar'.")],
    train_num_samples: Annotated[int, typer.Option(min=1, help="Pairs of an epoch.")],
    val_data: Annotated[str, typer.Option(help="Shards of the retrieval test.")] = "",
    imagenet_val: Annotated[str, typer.Option(help="Folder of the zero-shot test.")] = "",
    model: Annotated[str, typer.Option(help="An unpruned OpenCLIP model.")] = "ViT-B-16",
    variants: Annotated[str, typer.Option(help='Variants, joined by ";".')] = large.DEFAULT,
    budgets: Annotated[str, typer.Option(help="steps, operations, or both.")] = "steps,operations",
    seeds: Annotated[str, typer.Option(help="Such as 0-7, 3 or 0,2,5.")] = "0",
    epochs: Annotated[int, typer.Option(min=1)] = 8,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs per process.")] = 512,
    warmup: Annotated[
        float, typer.Option(min=0, max=1, help="Share with a rising learning rate.")
    ] = 0.1,
    precision: Annotated[str, typer.Option(help="OpenCLIP's name of it.")] = "amp_bf16",
    device: Annotated[str, typer.Option(help="cuda, or cpu.")] = "cuda",
    processes: Annotated[int, typer.Option(min=1, help="GPUs, by torchrun if several.")] = 1,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the log.")] = Path("runs"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write the model configs, print the commands.")
    ] = False,
    flags: Annotated[
        list[str] | None, typer.Argument(help="After --: more flags of OpenCLIP's command.")
    ] = None,
) -> None:
    """Train at real size with OpenCLIP's own command; an interrupted grid goes on."""
    log, more = out / large.LOG, tuple(flags or ())
    try:
        large.check_flags(more)
        recipe = large.LargeRecipe(
            model, large.base_config(model), train_data, train_num_samples, val_data, imagenet_val,
            epochs, batch_size, warmup, precision, device, processes, more,
        )  # fmt: skip
        chosen = large.check([name.strip() for name in variants.split(";") if name.strip()])
        rows = wanted(recipe, chosen, read_budgets(budgets), read_seeds(seeds))
        missing = results_log.missing(rows, results_log.read(log))
        commands = [large.command(row, out) for row in missing]
    except (ValueError, ElipError) as error:
        raise typer.BadParameter(str(error)) from error
    if not (val_data or imagenet_val):
        raise typer.BadParameter("give --val-data or --imagenet-val: there would be no results.")
    typer.echo(f"{len(rows)} trainings, {len(rows) - len(missing)} of them done", err=True)
    for row, command in zip(missing, commands):
        if dry_run:
            configs = shlex.quote(str(large.write_config(row, out)))
            typer.echo(f"ELIP_MODEL_CONFIGS={configs} {shlex.join(command)}")
            continue
        try:
            results_log.append(log, large.run(row, out))
        except RuntimeError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(1) from error
    done = results_log.read(log)
    shown = [large.cells(row) for row in done if not results_log.missing([row], rows)]
    table = Table(*dict.fromkeys(column for row in shown for column in row))
    for row in shown:
        table.add_row(*(row.get(str(column.header), "") for column in table.columns))
    if shown:
        Console(markup=False, emoji=False).print(table)


@app.command("time")
def time_steps(
    variants: Annotated[str, typer.Option(help='Variants, joined by ";"; "" for all.')] = "",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that count.")] = 9,
    out: Out = RESULTS,
    data: Data = DATA,
    cache: Cache = CACHE,
) -> None:
    """Time the training steps of variants in turn; nothing else should run."""
    names = read_variants(variants) if variants else list(VARIANTS)
    _make(data, cache)
    recipe = RECIPES["scratch"]
    write_times(out / page.TIMES, names, recipe, read_pairs(data, "train"), rounds)


@app.command("list")
def list_rows() -> None:
    """List the variants with the counted operations of their training step, and the questions."""
    print_list(RECIPES["scratch"], QUESTIONS)


@app.command("report")
def print_report(
    out: Out = RESULTS,
    write: Annotated[
        bool, typer.Option("--write", help="Write research/quality.md's tables and charts, too.")
    ] = False,
    reducers: Reducers = None,
) -> None:
    """Print the board and the answers from the log alone."""
    _add(reducers)
    _print(out)
    if write:
        page.write()


def _print(out: Path, recipes: Mapping[str, Recipe] | None = None) -> None:
    found = page.read(out, recipes)
    print_boards(found, MRR, page.HEADER)
    asked = answers({name: found.get(name, {}) for name in RECIPES}, QUESTIONS, MRR)
    if asked.count("\n") > 2:  # more than a header
        typer.echo(asked)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.quality")
