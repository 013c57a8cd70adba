"""`elip export`: a tower as a file for ONNX Runtime, OpenVINO or torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from elip_plugin.cli.options import (
    Checkpoint,
    ImageSize,
    Keep,
    Model,
    Plan,
    RandomWeights,
    examples,
)
from elip_plugin.cli.target import check_weights, resolve

EXAMPLES = examples(
    "elip export --model ViT-B-32 --checkpoint openai --out embed-b32",
    "elip export --model elip-third-ViT-L-14 --checkpoint openai --text -o l14",
)
MOST_PICTURES = 64
"""Pictures of `--images` that are looked at."""


def export(
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to make.")],
    checkpoint: Checkpoint = "",
    random: RandomWeights = False,
    format: Annotated[str, typer.Option(help="onnx, openvino or torch.")] = "onnx",
    plan: Plan = "",
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
    from elip_plugin.pictures import find_items, read_picture

    find_format(format)  # before a model is built
    target = resolve(model, plan, keep, embeds=True)
    check_weights("export", model, checkpoint, random)
    items = [] if images is None else find_items([images])[:MOST_PICTURES]
    manifest = write(
        target.build(checkpoint=checkpoint, image_size=image_size),
        out,
        format=format,
        text=text,
        pictures=[read_picture(item) for item in items],
        progress=lambda line: typer.echo(line, err=True),
    )
    for name, tower in manifest["towers"].items():
        parity = tower["parity"]
        worst = max(parity["differences"].values())
        typer.echo(
            f"{out / tower['file']}: features of the {name} tower differ from the model's by at "
            f"most {worst:.1g} (the largest is {parity['largest']:.2g}); the neighbors of "
            f"{parity['rankings']} inputs come in the same order"
        )
    typer.echo(
        f"{manifest['label']}; counted: {manifest['counted_forward']:.2f} of an unpruned forward."
    )
