"""`elip export`: a tower as a file for ONNX Runtime, OpenVINO or torch."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from elip_plugin.cli.options import ImageSize, Keep, Model, Preset, examples

EXAMPLES = examples(
    "elip export --model elip-embed-ViT-B-32 --out embed-b32",
    "elip export --model elip-embed-ViT-L-14 --format openvino --text --out l14",
)
MOST_PICTURES = 64
"""Pictures of `--images` that are looked at."""


def export(
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to make.")],
    checkpoint: Annotated[
        str, typer.Option(help="Weights: a file, a folder, or a tag of OpenCLIP's.")
    ] = "",
    format: Annotated[str, typer.Option(help="onnx, openvino or torch.")] = "onnx",
    preset: Preset = "",
    keep: Keep = "",
    image_size: ImageSize = None,
    text: Annotated[bool, typer.Option("--text", help="Export the text tower as well.")] = False,
    images: Annotated[
        Path | None, typer.Option(help="Pictures to check the file with; by default random ones.")
    ] = None,
) -> None:
    """Export the image tower with its pruning, and check the file against the model."""
    from elip_plugin.export import export as write
    from elip_plugin.export.formats import find_format
    from elip_plugin.hosts.registry import create
    from elip_plugin.measure.preview import make_config
    from elip_plugin.visualize.pictures import find_pictures

    find_format(format)  # before a model is built
    pictures = [] if images is None else [p.image for p in find_pictures([images], MOST_PICTURES)]
    config = make_config(preset, keep)
    if config is not None:
        config = replace(config, eval_mode="image")
    made = create(model, config, checkpoint=checkpoint, image_size=image_size)
    manifest = write(
        made,
        out,
        format=format,
        text=text,
        pictures=islice(pictures, MOST_PICTURES),
        progress=lambda line: typer.echo(line, err=True),
    )
    for name, tower in manifest["towers"].items():
        parity = tower["parity"]
        worst = max(parity["differences"].values())
        typer.echo(
            f"{name}: {out / tower['file']}, features within {worst:.1g} of the model's (the "
            f"largest is {parity['largest']:.2g}), {parity['rankings']} rankings equal"
        )
    typer.echo(
        f"Counted: {manifest['counted_forward']:.2f} of an unpruned forward, with "
        f"{manifest['weights']['from']}."
    )
