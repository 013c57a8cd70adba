"""`elip models` and `elip plan`: what is offered, and what a plan does, without any weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def models(
    host: Annotated[str, typer.Option(help="open_clip or lavis; by default both.")] = "",
) -> None:
    """List the pruned models, and the hosts that were found."""
    from rich.console import Console
    from rich.table import Table

    from elip_plugin.errors import MissingHostError
    from elip_plugin.hosts.registry import HOSTS, load_host, version_of

    console, table = Console(), Table("name", "prunes", "plan", "host")
    for name in [host] if host else list(HOSTS):
        try:
            offered = load_host(name).variants().values()
        except MissingHostError as error:
            console.print(f"{name}: {error}", highlight=False, markup=False)
            continue
        console.print(f"{name} {version_of(name)}: {len(offered)} models")
        for variant in offered:
            table.add_row(variant.name, variant.base, variant.plan, variant.host)
    if table.row_count:
        console.print(table)


def plan(
    model: Annotated[str, typer.Option(help="Such as elip-ViT-B-16, or elip_blip_vqa:vqav2.")],
    preset: Annotated[str, typer.Option(help="paper or fast; by default the model's own.")] = "",
    keep: Annotated[
        str, typer.Option(help="Keep ratios of the preset's stages, such as 0.9,0.65,0.4.")
    ] = "",
    target_speedup: Annotated[
        float | None, typer.Option(help="Solve for a counted speed-up of the training step.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels of a side.")] = None,
    batch: Annotated[int, typer.Option(help="Images per batch, for the memory.")] = 128,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the config, for either host.")
    ] = None,
) -> None:
    """Show the tokens in each block, and what the plan saves, without any weights."""
    from elip_plugin.measure.preview import make_config, preview, print_plan, write_config

    config = make_config(preset, keep)
    pruner = preview(model, config, image_size=image_size, target_speedup=target_speedup)
    print_plan(model, pruner, batch)
    if out is not None:
        write_config(out, pruner.config)
        typer.echo(f"written to {out}")
