"""`elip data`: data sets that need no download hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Make data sets that need no download hub.", no_args_is_help=True)


@app.command()
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
        f"LAVIS: {made.out / 'train.json'}, {made.out / 'held_out.json'}; "
        f"tokenizer: {made.out / 'vocab.txt'}\n"
        f"{made.attribution}"
    )


@app.command()
def vocab(
    json: Annotated[list[Path], typer.Option(help="JSON list of pairs; may be given repeatedly.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write, such as vocab.txt.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Write a WordPiece vocabulary of captions, which BERT's tokenizer reads."""
    from elip_plugin.data.vocab import vocab_from_lists

    captions, tokens = vocab_from_lists(json, out, overwrite=overwrite)
    typer.echo(f"{tokens} tokens from {captions} captions in {out}")
