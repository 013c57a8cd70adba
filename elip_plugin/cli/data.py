"""`elip data`: data sets that need no download hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from elip_plugin.cli.options import examples

app = typer.Typer(
    help="Make data sets that need no download hub.",
    epilog=examples(
        "elip data openmoji --out data/openmoji",
        "elip data vocab --json train.json -o vocab.txt",
    ),
    no_args_is_help=True,
)


@app.command(
    epilog=examples(
        "elip data openmoji --out data/openmoji",
        "elip data openmoji --out data/openmoji --size 224 --seed 1 --overwrite",
    )
)
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
    from elip_plugin.data.openmoji import write_openmoji

    made = write_openmoji(out, size=size, held_out=held_out, seed=seed, overwrite=overwrite)
    typer.echo(
        f"{made.pairs} pairs in {made.out}: {made.train} train, {made.held_out} held out\n"
        f"{made.dropped_captions} dropped for a repeated caption; "
        f"{made.shared_pictures} kept although they look exactly like another\n"
        f"OpenCLIP: --dataset-type webdataset --train-data '{made.train_pattern}' "
        f"--train-num-samples {made.train}\n"
        f"LAVIS: {made.out / 'train.json'}, {made.out / 'held_out.json'}; "
        f"tokenizer: {made.out / 'vocab.txt'}\n"
        f"CLIP_benchmark: clip_benchmark eval --dataset wds/openmoji --dataset_root '{made.out}' "
        "--task zeroshot_retrieval --model MODEL --pretrained CHECKPOINT\n"
        f"{made.attribution}"
    )


@app.command(
    epilog=examples(
        "elip data vocab --json train.json -o vocab.txt",
        "elip data vocab --json coco.json --json vg.json -o vocab.txt --overwrite",
    )
)
def vocab(
    json: Annotated[list[Path], typer.Option(help="JSON list of pairs; may be given repeatedly.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write, such as vocab.txt.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Write a WordPiece vocabulary of captions, which BERT's tokenizer reads."""
    from elip_plugin.data.vocab import write_vocab
    from elip_plugin.errors import DataError
    from elip_plugin.hosts.lavis.compat.pairs import captions_in

    if out.exists() and not overwrite:
        raise DataError(f"{out} exists: name another file or pass --overwrite.")
    captions = [caption for path in json for caption in captions_in(path)]
    tokens = write_vocab(captions, out)
    typer.echo(f"{tokens} tokens from {len(captions)} captions in {out}")
