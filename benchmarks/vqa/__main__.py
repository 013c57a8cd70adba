"""`python -m benchmarks.vqa`: does a question choose the tokens that its answer needs?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import results_log
from benchmarks.data.emojis import write_emojis
from benchmarks.photos.folder import FolderError
from benchmarks.vqa import grid, report
from benchmarks.vqa.export import export
from benchmarks.vqa.recipe import ARCHS, EMOJIS, KINDS, LAVIS, PATCHES, PHOTOGRAPHS
from benchmarks.vqa.variants import VARIANTS

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Train small models on questions about one of several objects, by LAVIS or transformers.",
)


@app.command()
def train(
    variants: Annotated[str, typer.Option(help='Variants, joined by ";"; see the command list.')],
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds, from the first.")] = 5,
    first: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    regime: Annotated[str, typer.Option(help="scratch, or continued.")] = "continued",
    budgets: Annotated[
        str, typer.Option(help="steps, operations (as unpruned training), none; joined by commas.")
    ] = "steps",
    arch: Annotated[str, typer.Option(help=f"One of {', '.join(ARCHS)}.")] = ARCHS[0],
    objects: Annotated[int, typer.Option(help="Per picture: 4, 9 or, of emojis, 16.")] = 9,
    kinds: Annotated[
        str,
        typer.Option(
            help="Of question: colour, place, number (of emojis), neighbour (of photographs)."
        ),
    ] = "colour",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the log.")] = report.RESULTS,
    data: Annotated[Path, typer.Option(help="Scenes and starting weights.")] = Path("data/vqa"),
    emojis: Annotated[Path, typer.Option(help="Made there if needed.")] = Path("data/emojis"),
    photos: Annotated[
        Path | None, typer.Option(help="Tiny ImageNet, whose photographs are asked about instead.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Trainings at a time; 0: one per core.")] = 0,
) -> None:
    """Train variants; every result is kept as soon as it is there, and a stopped run goes on."""
    asked = [name.strip() for name in budgets.split(",")]
    source = EMOJIS if photos is None else PHOTOGRAPHS
    try:
        chosen = grid.check([name.strip() for name in variants.split(";") if name.strip()])
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    for given, allowed in (
        (asked, grid.BUDGETS),
        ([regime], ("scratch", "continued")),
        ([arch], ARCHS if photos is None else LAVIS),
        ([objects], PATCHES[source]),
        (kinds.split(","), KINDS[source]),
    ):
        if not set(given) <= set(allowed):
            raise typer.BadParameter(f"{given} given, but allowed are {list(allowed)}.")
    if photos is None and not emojis.exists():
        write_emojis(emojis, data / "cache", progress=typer.echo)
    recipe = grid.recipe_of(regime, source, arch=arch, objects=objects, kinds=kinds)
    rows = grid.wanted(recipe, chosen, asked, range(first, first + seeds))
    log = out / report.LOG
    missing = results_log.missing(rows, results_log.read(log))
    typer.echo(f"{len(rows)} trainings, {len(rows) - len(missing)} of them done", err=True)
    try:
        grid.train_all(
            missing, data, photos or emojis, log, jobs=jobs or os.cpu_count() or 1,
            done=lambda row: typer.echo(report.line(row)),
        )  # fmt: skip
    except FolderError as error:
        raise typer.BadParameter(str(error)) from error


@app.command("report")
def print_report(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the log.")] = report.RESULTS,
    write: Annotated[
        bool, typer.Option("--write", help="Write research/text.md's tables.")
    ] = False,
) -> None:
    """Print the tables from the log alone."""
    made = report.tables(out)
    for table in made.values():
        typer.echo(table)
    if write:
        report.write(made)


@app.command("export")
def write_files(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")],
    objects: Annotated[int, typer.Option(help="Objects per picture: 4, 9 or 16.")] = 9,
    data: Annotated[Path, typer.Option(help="Scenes.")] = Path("data/vqa"),
    emojis: Annotated[Path, typer.Option(help="Made there if needed.")] = Path("data/emojis"),
) -> None:
    """Write pictures and questions as LAVIS' own runner reads them."""
    if not emojis.exists():
        write_emojis(emojis, data / "cache", progress=typer.echo)
    export(grid.recipe_of("scratch", objects=objects), data, emojis, out)
    typer.echo(f"written: {out}")


@app.command("list")
def list_variants() -> None:
    """List the variants."""
    for name, variant in VARIANTS.items():
        Console(markup=False, emoji=False).print(f"{name:16} {variant.about}", highlight=False)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.vqa")
