"""`python -m benchmarks.photos`: does pruning keep the quality on photographs?"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.board.command import print_boards, print_list, train_missing, write_times
from benchmarks.board.grid import wanted
from benchmarks.board.options import read_budgets, read_seeds, read_variants
from benchmarks.board.questions import needed
from benchmarks.board.variants import VARIANTS
from benchmarks.photos import grid, page
from benchmarks.photos.boxes import MODEL, on_objects, trained_model, write_model
from benchmarks.photos.folder import FolderError, read_validation
from benchmarks.photos.questions import ALL_QUESTIONS, TOP1
from benchmarks.photos.recipe import RECIPES

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Train small models on photographs with and without pruning, and compare their scores.",
)
Out = Annotated[
    Path, typer.Option("--out", "-o", help="Folder of log and times; it goes on there.")
]
Data = Annotated[Path, typer.Option(help="Tiny ImageNet, the folder tiny-imagenet-200.")]
Cache = Annotated[Path, typer.Option(help="Folder of photographs as arrays, trained weights.")]
CACHE, RESULTS = Path("data/photos"), page.RESULTS


@app.command()
def train(
    data: Data,
    variants: Annotated[
        str, typer.Option(help='Variants, joined by ";"; see the command list.')
    ] = "",
    budgets: Annotated[
        str, typer.Option(help="steps, operations, or both: as many as unpruned training.")
    ] = "steps,operations",
    regime: Annotated[str, typer.Option(help="scratch, unseen, or continued.")] = "scratch",
    seeds: Annotated[str, typer.Option(help="Such as 0-7, 3 or 0,2,5.")] = "0-7",
    questions: Annotated[
        bool, typer.Option("--questions", help="All trainings that the questions need.")
    ] = False,
    out: Out = RESULTS,
    cache: Cache = CACHE,
    jobs: Annotated[int, typer.Option(min=0, help="Trainings at a time; 0: one per core.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, or cuda.")] = "cpu",
) -> None:
    """Train variants; every result is kept as soon as it is there, and a stopped run goes on."""
    if regime not in RECIPES:
        raise typer.BadParameter(f"regime is {regime!r}, but must be one of {list(RECIPES)}.")
    chosen, asked = read_variants(variants), read_budgets(budgets)
    rows = wanted(RECIPES[regime], chosen, asked, read_seeds(seeds))
    rows = needed(ALL_QUESTIONS, RECIPES) if questions else rows
    train_all = partial(
        grid.train_all, data=data, cache_folder=cache, jobs=jobs or os.cpu_count() or 1,
        device=device,
    )  # fmt: skip
    try:
        train_missing(rows, out / page.LOG, train_all, TOP1)
    except FolderError as error:
        raise typer.BadParameter(str(error)) from error
    _print(out)


@app.command("time")
def time_steps(
    data: Data,
    variants: Annotated[str, typer.Option(help='Variants, joined by ";"; "" for all.')] = "",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that count.")] = 9,
    out: Out = RESULTS,
    cache: Cache = CACHE,
) -> None:
    """Time the training steps of variants in turn; nothing else should run."""
    names = read_variants(variants) if variants else list(VARIANTS)
    recipe = RECIPES["scratch"]
    try:
        pairs = grid.study_of(recipe, data, cache).train
    except FolderError as error:
        raise typer.BadParameter(str(error)) from error
    write_times(out / page.TIMES, names, recipe, pairs, rounds)


@app.command("boxes")
def measure_boxes(
    data: Data,
    most: Annotated[int, typer.Option(min=1, help="Most photographs to measure.")] = 2000,
    out: Out = RESULTS,
    cache: Cache = CACHE,
) -> None:
    """Measure which patches merge, by the objects' boxes, in every model trained from scratch."""
    try:
        pictures = read_validation(data, cache).pictures
        found = [
            {name: row[name] for name in ("variant", "budget", "seed")}
            | {"lift": on_objects(row, data, cache, pictures, most)}
            for by_seed in page.read(out)["scratch"].values()
            for row in by_seed.values()
        ]
    except (FolderError, FileNotFoundError) as error:
        raise typer.BadParameter(str(error)) from error
    page.write_boxes(out, found, most)
    typer.echo(page.tables(out)["photos boxes"])


@app.command("export")
def export_model(
    folder: Annotated[Path, typer.Argument(help="Folder to write to.")],
    data: Data,
    variant: Annotated[str, typer.Option(help="Which training; see the log.")] = "tome",
    budget: Annotated[str, typer.Option(help="steps, or operations.")] = "steps",
    seed: Annotated[int, typer.Option(min=0, help="Its seed.")] = 0,
    out: Out = RESULTS,
    cache: Cache = CACHE,
) -> None:
    """Write a trained model as OpenCLIP reads it, for `elip show` and other commands."""
    row = page.read(out)["scratch"].get((variant, budget), {}).get(seed)
    if row is None:
        raise typer.BadParameter(
            f"{out / page.LOG} has no training {(variant, budget, seed)} from scratch."
        )
    try:
        write_model(trained_model(row, data, cache), folder)
    except (FolderError, FileNotFoundError) as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(
        f"ELIP_MODEL_CONFIGS={folder} elip show --model elip-half-{MODEL} "
        f"--checkpoint {folder / 'weights.pt'} --image {data / 'val' / 'images'} -o photos.html"
    )


@app.command("list")
def list_rows() -> None:
    """List the variants with the counted operations of their training step, and the questions."""
    print_list(RECIPES["scratch"], ALL_QUESTIONS)


@app.command("report")
def print_report(
    out: Out = RESULTS,
    write: Annotated[
        bool, typer.Option("--write", help="Write research/photos.md's tables and charts, too.")
    ] = False,
) -> None:
    """Print the board and the answers from the log alone."""
    _print(out)
    if write:
        page.write()


def _print(out: Path) -> None:
    print_boards(page.read(out), TOP1, page.HEADER)
    typer.echo(page.tables(out)["photos answers"])


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.photos")
