"""The command `elip`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from elip_plugin.errors import ElipError

app = typer.Typer(help="ELIP: prune and merge vision tokens.", no_args_is_help=True)
data_app = typer.Typer(help="Make data sets that need no download hub.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@data_app.command()
def openmoji(
    out: Annotated[Path, typer.Option(help="Folder to write to; new or empty.")],
    size: Annotated[int, typer.Option(help="Width and height of the pictures, pixels.")] = 64,
    held_out: Annotated[int, typer.Option(help="Pairs kept out of the train split.")] = 500,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the files of an earlier run.")
    ] = False,
) -> None:
    """Write about 3,950 pairs of an emoji and its English name."""
    from rich.console import Console
    from rich.progress import Progress

    from elip_plugin.data.openmoji import write_openmoji

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("Rendering", total=None)
        made = write_openmoji(
            out,
            size=size,
            held_out=held_out,
            seed=seed,
            overwrite=overwrite,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    typer.echo(
        f"{made.pairs} pairs in {made.out}: {made.train} train, {made.held_out} held out\n"
        f"{made.dropped_captions} dropped for a repeated caption; "
        f"{made.shared_pictures} kept although they look exactly like another\n"
        f"OpenCLIP: --dataset-type webdataset --train-data '{made.train_pattern}' "
        f"--train-num-samples {made.train}\n"
        f"LAVIS: {made.out / 'train.json'}, {made.out / 'held_out.json'}\n"
        f"{made.attribution}"
    )


def main() -> None:
    """Run the command line; an error of ours becomes one line on stderr and exit code 1."""
    try:
        app()
    except ElipError as error:
        typer.echo(f"elip: {' '.join(str(error).splitlines())}", err=True)
        sys.exit(1)
