"""`elip show`: which patches survive, drawn over the pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from elip_plugin.cli.options import Keep, Model, Preset, check_file, examples
from elip_plugin.errors import ConfigError
from elip_plugin.files import write_text

EXAMPLES = examples(
    "elip show --model elip-ViT-B-32 --checkpoint openai --image cat.jpg -o a.html",
    'elip show --model elip_albef_pretrain --image cats --text "a cat" -o a.png',
)


def show(
    model: Model,
    image: Annotated[
        list[Path], typer.Option(help="An image, a folder of them, or a .tar shard; repeatable.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="An .html or .png file to write.")],
    text: Annotated[
        list[str] | None,
        typer.Option(help="A text to guide by, a row each; by default the pictures' captions."),
    ] = None,
    checkpoint: Annotated[
        str,
        typer.Option(
            help="Weights: a file, a tag of OpenCLIP's, or a folder of save_pretrained; by default "
            "random."
        ),
    ] = "",
    preset: Preset = "",
    keep: Keep = "",
    most: Annotated[int, typer.Option(help="Most pictures to show.")] = 12,
) -> None:
    """Draw which patches survive each stage, a row per text, a column per stage."""
    from elip_plugin.hosts.registry import create
    from elip_plugin.measure.preview import make_config
    from elip_plugin.visualize.html import to_html
    from elip_plugin.visualize.pictures import find_pictures
    from elip_plugin.visualize.png import write_png
    from elip_plugin.visualize.stages import visualize

    check_file(out, ".html", ".png")
    if most < 1:
        raise ConfigError(f"--most must be 1 or more, got {most}")
    pictures = find_pictures(image, most)
    host_model = create(model, make_config(preset, keep), checkpoint=checkpoint)
    made = visualize(host_model, pictures, text or [])
    if out.suffix == ".html":
        write_text(out, to_html(made), errors="replace")
    else:
        write_png(made, out)
    if not checkpoint:
        typer.echo(f"weights: {made.weights}; give --checkpoint for trained ones", err=True)
    typer.echo(f"{len(made.pictures)} pictures, {len(made.rows)} rows: {out}")
