"""`elip bench`: what pruning saves, measured on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elip_plugin.errors import ElipError

if TYPE_CHECKING:
    from elip_plugin.hosts.base import HostModel

app = typer.Typer(help="Measure what pruning saves, and what it costs.", no_args_is_help=True)

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
        str, typer.Option(help="Comma-separated, the first is the reference; by default all.")
    ] = "",
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
    from elip_plugin.measure.speed import measure_speed

    made, rows = measure_speed(
        _create(model, image_size, device),
        variants=variants.split(",") if variants else (),
        passes=passes.split(","),
        batch=batch,
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
    from rich.console import Console
    from rich.table import Table

    from elip_plugin.measure.memory import fit_batches, parse_bytes

    budget, host_model = parse_bytes(fit), _create(model, image_size, device)
    table = Table("variant", "largest batch", "whatever the batch", "each pair", "how")
    for made in fit_batches(host_model, budget, variants.split(","), precision):
        how = "tried out" if made.measured else "predicted from what autograd keeps"
        fixed, pair = f"{made.fixed / 2**30:.2f} GiB", f"{made.per_pair / 2**20:.1f} MiB"
        table.add_row(made.variant, str(made.batch), fixed, pair, how)
    Console().print(table)


@app.command()
def startup(
    pairs: Annotated[int, typer.Option(help="Pairs of processes that count.")] = 100,
) -> None:
    """Time an unrelated Python process with and without the start-up file."""
    from elip_plugin.measure.startup import measure_startup

    plain, (low, middle, high) = measure_startup(sys.executable, pairs=pairs)
    typer.echo(
        f"{middle:.2f} ms more than {plain:.1f} ms without the start-up file: "
        f"medians of {pairs} pairs of processes in turn; quartiles of the difference "
        f"{low:.2f} to {high:.2f} ms"
    )


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def quality() -> None:
    """Print where the study of quality is."""
    raise ElipError(
        "the study of quality is not part of the package any more: in a clone of its repository, "
        "run python -m benchmarks.quality"
    )


def _create(model: str, image_size: int | None, device: str) -> HostModel:
    import torch

    from elip_plugin.hosts.registry import create

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return create(model, image_size=image_size, device=device)
