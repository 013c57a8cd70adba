"""The command `elip`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from elip_plugin.errors import ElipError

app = typer.Typer(help="ELIP: prune and merge vision tokens.", no_args_is_help=True)
data_app = typer.Typer(help="Make data sets that need no download hub.", no_args_is_help=True)
lavis_app = typer.Typer(help="Run LAVIS, from its wheel alone.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(lavis_app, name="lavis")

CfgPath = Annotated[Path, typer.Option("--cfg-path", help="A LAVIS run config.")]
Options = Annotated[
    list[str] | None, typer.Option("--options", help="Override, such as run.max_epoch=1.")
]
MoreOptions = Annotated[list[str] | None, typer.Argument(help="More overrides.", metavar="K=V")]


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
        f"LAVIS: {made.out / 'train.json'}, {made.out / 'held_out.json'}; "
        f"tokenizer: {made.out / 'vocab.txt'}\n"
        f"{made.attribution}"
    )


@data_app.command()
def vocab(
    json: Annotated[list[Path], typer.Option(help="JSON list of pairs; may be given repeatedly.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write, such as vocab.txt.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Write a WordPiece vocabulary of captions, which BERT's tokenizer reads."""
    from elip_plugin.data.vocab import vocab_from_lists

    captions, tokens = vocab_from_lists(json, out, overwrite=overwrite)
    typer.echo(f"{tokens} tokens from {captions} captions in {out}")


@lavis_app.command()
def train(cfg_path: CfgPath, options: Options = None, more: MoreOptions = None) -> None:
    """Train a model, and evaluate it on the config's splits."""
    from elip_plugin.hosts.lavis.train import run

    _print_scores(run(cfg_path, [*(options or []), *(more or [])], evaluate=False))


@lavis_app.command()
def evaluate(
    cfg_path: CfgPath,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights; by default those that the config loads.")
    ] = None,
    options: Options = None,
    more: MoreOptions = None,
) -> None:
    """Evaluate a model on the config's test splits."""
    from elip_plugin.hosts.lavis.train import run

    overrides = [*(options or []), *(more or [])]
    _print_scores(run(cfg_path, overrides, evaluate=True, checkpoint=checkpoint))


@lavis_app.command()
def configs() -> None:
    """List the run configs that come with this package."""
    from elip_plugin.hosts.lavis.paths import configs_root

    for path in sorted((configs_root() / "projects").rglob("*.yaml")):
        typer.echo(path)


def _print_scores(scores: dict[str, Any]) -> None:
    for split, values in scores.items():
        figures = (values or {}).items()
        shown = [f"{k} {v:.1f}" for k, v in figures if isinstance(v, (int, float))]
        if shown:
            typer.echo(f"{split}: {', '.join(shown)}")


def main() -> None:
    """Run the command line; an error of ours becomes one line on stderr and exit code 1."""
    try:
        app()
    except ElipError as error:
        typer.echo(f"elip: {' '.join(str(error).splitlines())}", err=True)
        sys.exit(1)
