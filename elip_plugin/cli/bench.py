"""`elip bench`: what pruning saves, measured on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from elip_plugin.cli.options import (
    Device,
    ImageSize,
    Keep,
    Model,
    OutFolder,
    Plan,
    examples,
    print_table,
)
from elip_plugin.cli.target import default_device, resolve

app = typer.Typer(
    help="Measure what pruning saves, and what it costs.",
    epilog=examples(
        "elip bench speed --model elip-half-ViT-B-16", "elip bench speed --plan third --batch 8"
    ),
    no_args_is_help=True,
)


@app.callback()
def bench() -> None:
    """Measure what pruning saves, and what it costs."""


@app.command(
    epilog=examples(
        "elip bench speed --model elip-half-ViT-B-16 --batch 8",
        "elip bench speed --plan half --keep 0.7 --passes step --rounds 15 -o out",
        "elip bench speed --variants full,half,third --passes tower",
    )
)
def speed(
    model: Model = "ViT-B-16",
    plan: Plan = "",
    keep: Keep = "",
    variants: Annotated[
        str,
        typer.Option(
            help="Comma-separated presets, reducers and unpruned forms to time as well; the first "
            "is the reference, by default full: all tokens."
        ),
    ] = "",
    batch: Annotated[int, typer.Option(min=1, help="Pairs per batch.")] = 8,
    image_size: ImageSize = None,
    device: Device = "",
    precision: Annotated[str, typer.Option(help="fp32 or bf16 (autocast).")] = "fp32",
    passes: Annotated[str, typer.Option(help="Of: inference, tower, step.")] = (
        "inference,tower,step"
    ),
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that count.")] = 7,
    compile: Annotated[bool, typer.Option("--compile", help="Compile each variant.")] = False,
    out: OutFolder = None,
) -> None:
    """Time a plan beside no pruning, in turn, with what both cost in arithmetic and memory."""
    from elip_plugin.files import make_folder
    from elip_plugin.measure.report import notes_on, speed_table, write_files
    from elip_plugin.measure.speed import measure_speed
    from elip_plugin.patching.install import find_pruner

    if out is not None:
        make_folder(out)
    target = resolve(model, plan, keep)
    host_model = target.build(image_size=image_size, device=default_device(device))
    names = variants.split(",") if variants else ["full"]
    own = find_pruner(host_model.model).config if target.said or not variants else None
    setting, rows = measure_speed(
        host_model,
        variants=names,
        own=own,
        passes=passes.split(","),
        batch=batch,
        precision=precision,
        rounds=rounds,
        compiled=compile,
        progress=lambda text: typer.echo(text, err=True),
    )
    print_table(speed_table(setting, rows))
    for line in notes_on(rows, own):
        typer.echo(line)
    if out is not None:
        write_files(out, setting, rows)
