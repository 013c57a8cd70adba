"""`elip show`: which patches survive, drawn over the pictures."""

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
    check_file,
    examples,
)
from elip_plugin.cli.target import resolve
from elip_plugin.files import write_text

EXAMPLES = examples(
    "elip show --model elip-ViT-B-32 --checkpoint openai --image cat.jpg -o a.html",
    'elip show --model elip_albef_pretrain --image cats --text "a cat" -o a.html',
)


def show(
    model: Model,
    image: Annotated[
        list[Path], typer.Option(help="An image, a folder of them, or a .tar shard; repeatable.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="An .html file to write.")],
    text: Annotated[
        list[str] | None,
        typer.Option(help="A text to guide by, a row each; by default the pictures' captions."),
    ] = None,
    checkpoint: Checkpoint = "",
    plan: Plan = "",
    keep: Keep = "",
    image_size: ImageSize = None,
    most: Annotated[int, typer.Option(min=1, help="Most pictures to show.")] = 12,
) -> None:
    """Draw which patches survive each stage, a row per text, a column per stage."""
    from elip_plugin.pictures import find_items
    from elip_plugin.visualize.html import to_html
    from elip_plugin.visualize.stages import visualize

    check_file(out, ".html")
    target = resolve(model, plan, keep)
    pictures = find_items(image)[:most]
    shown = visualize(
        target.build(checkpoint=checkpoint, image_size=image_size), pictures, text or []
    )
    write_text(out, to_html(shown), errors="replace")
    typer.echo(f"{shown.label}: {len(shown.pictures)} pictures, {len(shown.rows)} rows: {out}")
