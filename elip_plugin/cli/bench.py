"""`elip bench`: what pruning saves, measured on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from elip_plugin.cli.quality import quality

app = typer.Typer(help="Measure what pruning saves, and what it costs.", no_args_is_help=True)
app.command()(quality)

Model = Annotated[str, typer.Option(help="A model, such as elip-ViT-B-16 or elip_albef_pretrain.")]
ImageSize = Annotated[
    int | None, typer.Option(help="Pixels of a side; by default the model's own.")
]
Device = Annotated[str, typer.Option(help="cpu or cuda; by default cuda where there is one.")]
Precision = Annotated[str, typer.Option(help="fp32 or bf16 (autocast).")]


@app.command()
def speed(
    model: Model = "elip-ViT-B-16",
    batch: Annotated[int, typer.Option(help="Pairs per batch.")] = 8,
    image_size: ImageSize = None,
    device: Device = "",
    precision: Precision = "fp32",
    variants: Annotated[
        str, typer.Option(help="Comma-separated; the first is the reference.")
    ] = "full,paper,fast,evit,tome,random",
    passes: Annotated[str, typer.Option(help="Of: inference, tower, step.")] = (
        "inference,tower,step"
    ),
    rounds: Annotated[int, typer.Option(help="Rounds that count.")] = 7,
    compile: Annotated[bool, typer.Option("--compile", help="Compile each variant.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for JSON, CSV and a chart.")
    ] = None,
) -> None:
    """Time variants in turn, beside what they cost in arithmetic and memory."""
    from elip_plugin.measure.report import print_table, write_files
    from elip_plugin.measure.speed import run

    made, rows = run(
        model,
        variants=variants.split(","),
        passes=passes.split(","),
        batch=batch,
        image_size=image_size,
        device=device,
        precision=precision,
        rounds=rounds,
        compiled=compile,
        progress=lambda text: typer.echo(text, err=True),
    )
    print_table(made, rows)
    if out is not None:
        write_files(out, made, rows)


@app.command()
def memory(
    fit: Annotated[str, typer.Option(help="Memory to fill, such as 24GiB.")],
    model: Model = "elip-ViT-B-16",
    image_size: ImageSize = None,
    device: Device = "",
    precision: Precision = "fp32",
    variants: Annotated[str, typer.Option(help="Comma-separated.")] = "full,paper,fast",
) -> None:
    """Find the largest batch that fits, unpruned and pruned."""
    from elip_plugin.measure.memory import fit_batches, parse_bytes, print_fits

    print_fits(
        fit_batches(
            model,
            parse_bytes(fit),
            variants=variants.split(","),
            image_size=image_size,
            device=device,
            precision=precision,
        )
    )


@app.command()
def startup(
    pairs: Annotated[int, typer.Option(help="Pairs of processes that count.")] = 100,
) -> None:
    """Time an unrelated Python process with and without the start-up file."""
    from elip_plugin.measure.startup import measure_startup

    made = measure_startup(sys.executable, pairs=pairs)
    typer.echo(
        f"{made.extra_ms:.2f} ms more than {made.plain_ms:.1f} ms without the start-up file: "
        f"medians of {pairs} pairs of processes in turn; quartiles of the difference "
        f"{made.low_ms:.2f} to {made.high_ms:.2f} ms"
    )
