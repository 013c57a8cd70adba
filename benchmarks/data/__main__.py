"""`python -m benchmarks.data`: make the data sets of the studies."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.data.emojis import STYLES, write_emojis
from benchmarks.data.files import DataSetError
from benchmarks.data.scene_files import write_scenes

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Make the data sets of the studies."
)
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write to; new or empty.")]
Seed = Annotated[int, typer.Option(help="Decides what is held out, or drawn.")]


@app.command()
def emojis(
    out: Out,
    size: Annotated[int, typer.Option(help="Width and height of the pictures, pixels.")] = 64,
    sets: Annotated[str, typer.Option(help="Comma-separated icon sets.")] = ",".join(STYLES),
    held_out: Annotated[int, typer.Option(help="Names kept out of the train split.")] = 400,
    seed: Seed = 0,
    cache: Annotated[
        Path, typer.Option(help="Folder of the npm package and of rendered sets.")
    ] = Path("data/cache"),
) -> None:
    """Write pairs of an emoji and its name, in up to ten styles; whole names are held out.

    A run that was interrupted goes on from the sets that it has rendered.
    """
    start = time.perf_counter()
    try:
        made = write_emojis(
            out,
            cache,
            styles=[name.strip() for name in sets.split(",") if name.strip()],
            size=size,
            held_out=held_out,
            seed=seed,
            progress=typer.echo,
        )
    except DataSetError as error:
        raise typer.BadParameter(str(error)) from error
    for style, about in made["sets"].items():
        typer.echo(
            f"{style:18} {about['train']:5} train {about['held_out']:5} held out  "
            f"{about['license']:13} {about['author']}"
        )
    for split, count in made["pictures"].items():
        typer.echo(f"{split}: {count} pictures of {made['names'][split]} names")
    typer.echo(f"written: {out} ({time.perf_counter() - start:.0f} s)")


@app.command()
def scenes(
    out: Out,
    objects: Annotated[int, typer.Option(help="Emojis per picture: 4, 9 or 16.")] = 4,
    names: Annotated[int, typer.Option(help="Names that occur in the scenes.")] = 60,
    train: Annotated[int, typer.Option(help="Scenes to train on.")] = 20_000,
    held_out: Annotated[int, typer.Option(help="Scenes to score on.")] = 2_000,
    size: Annotated[
        int | None, typer.Option(help="Side of a picture, pixels; 64, 72 or 64 if not given.")
    ] = None,
    seed: Seed = 0,
    data: Annotated[
        Path, typer.Option(help="Emojis; made there if the folder is not there.")
    ] = Path("data/emojis"),
    cache: Annotated[Path, typer.Option(help="As of emojis.")] = Path("data/cache"),
) -> None:
    """Write pictures of several emojis, with captions, questions, answers and boxes."""
    start = time.perf_counter()
    try:
        if not data.exists():
            typer.echo(f"making the emojis in {data}")
            write_emojis(data, cache, progress=typer.echo)
        made = write_scenes(
            out,
            data,
            objects,
            names=names,
            train=train,
            held_out=held_out,
            seed=seed,
            size=size,
            progress=typer.echo,
        )
    except DataSetError as error:
        raise typer.BadParameter(str(error)) from error
    side = made["settings"]["size"]
    typer.echo(
        f"{objects} objects per picture of {side} x {side} pixels, {names} names; written: {out} "
        f"({time.perf_counter() - start:.0f} s)"
    )


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.data")
