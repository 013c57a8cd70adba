"""`elip bench`: what pruning saves, measured on this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elip_plugin.cli.completion import complete_model
from elip_plugin.cli.help import examples
from elip_plugin.errors import ConfigError, ElipError

if TYPE_CHECKING:
    from elip_plugin.hosts.base import HostModel

app = typer.Typer(
    help="Measure what pruning saves, and what it costs.",
    epilog=examples("elip bench speed --batch 8", "elip bench memory --fit 24GiB"),
    no_args_is_help=True,
)

Model = Annotated[
    str,
    typer.Option(
        help="A model, such as elip-ViT-B-16 or elip_albef_pretrain.",
        autocompletion=complete_model,
    ),
]
ImageSize = Annotated[
    int | None, typer.Option(help="Pixels of a side; by default the model's own.")
]
Device = Annotated[str, typer.Option(help="cpu or cuda; by default cuda where there is one.")]
Precision = Annotated[str, typer.Option(help="fp32 or bf16 (autocast).")]


@app.command(
    epilog=examples(
        "elip bench speed --model elip-ViT-B-16 --batch 8",
        "elip bench speed --variants full,fast --passes step --rounds 15 -o results",
    )
)
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
    attention: Annotated[
        str, typer.Option(help="fused (torch's choice) or plain (no fused kernel).")
    ] = "fused",
    data: Annotated[
        Path | None,
        typer.Option(help="Time loading too: a folder of images, or a .tar shard."),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that load in the training.")] = 4,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for JSON, CSV and a chart.")
    ] = None,
) -> None:
    """Time variants in turn, beside what they cost in arithmetic and memory."""
    from elip_plugin.measure.parts import describe_parts, measure_parts
    from elip_plugin.measure.report import print_table, write_files
    from elip_plugin.measure.speed import measure_speed

    if workers < 1:
        raise ConfigError(f"workers must be 1 or more, got {workers}")
    host_model = _create(model, image_size, device)
    load = None if data is None else _loader(host_model, data, batch)
    made, rows = measure_speed(
        host_model,
        variants=variants.split(",") if variants else (),
        passes=passes.split(","),
        batch=batch,
        precision=precision,
        rounds=rounds,
        compiled=compile,
        attention=attention,
        progress=lambda text: typer.echo(text, err=True),
    )
    print_table(made, rows)
    parts = None
    if {"tower", "step"} <= {*passes.split(",")}:
        parts = measure_parts(
            host_model,
            batch=batch,
            precision=precision,
            rounds=rounds,
            load=load,
            workers=workers,
        )
        for line in describe_parts(rows, parts):
            typer.echo(line)
    if out is not None:
        write_files(out, made, rows, parts)


def _loader(host_model: HostModel, data: Path, batch: int) -> Callable[[], object]:
    """Return a function that loads a batch; short data are read again and again."""
    from elip_plugin.visualize.pictures import find_pictures

    def load() -> None:
        missing = batch
        while missing > 0:
            pictures = find_pictures([data], missing)
            for picture in pictures:
                host_model.preprocess(picture.image)
            missing -= len(pictures)

    load()  # so that data that cannot be read are named at once
    return load


@app.command(
    epilog=examples(
        "elip bench memory --fit 24GiB",
        "elip bench memory --fit 80GiB --model elip-ViT-L-14 --precision bf16",
    )
)
def memory(
    fit: Annotated[str, typer.Option(help="Memory to fill, such as 24GiB.")],
    model: Model = "elip-ViT-B-16",
    image_size: ImageSize = None,
    device: Device = "",
    precision: Precision = "fp32",
    variants: Annotated[str, typer.Option(help="Comma-separated.")] = "full,paper,fast",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for JSON.")] = None,
) -> None:
    """Find the largest batch that fits, unpruned and pruned: on a GPU by trying it out."""
    from rich.console import Console
    from rich.table import Table

    from elip_plugin.measure.memory import fit_batches, parse_bytes, try_batches

    budget, names = parse_bytes(fit), variants.split(",")
    fits = fit_batches(_create(model, image_size, "meta"), budget, names, precision)
    if _device(device) != "cpu":
        host_model = _create(model, image_size, device)
        fits = try_batches(host_model, budget, fits, precision)
    table = Table("variant", "largest batch", "whatever the batch", "each pair", "how")
    for made in fits:
        how = f"tried out; predicted {made.predicted}" if made.measured else "predicted by counting"
        fixed, pair = f"{made.fixed / 2**30:.2f} GiB", f"{made.per_pair / 2**20:.1f} MiB"
        table.add_row(made.variant, str(made.batch), fixed, pair, how)
    Console().print(table)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        found = {"budget": budget, "precision": precision, "fits": [asdict(f) for f in fits]}
        (out / "memory.json").write_text(json.dumps(found, indent=1) + "\n")


@app.command(
    epilog=examples(
        "elip bench gpu --model elip-ViT-B-16 --batch 128 -o gpu",
        "elip bench gpu --model elip-ViT-S-16 --device cpu --toy -o toy",
    )
)
def gpu(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the log and the report.")],
    model: Model = "elip-ViT-B-16",
    batch: Annotated[int, typer.Option(help="Pairs per batch and GPU.")] = 64,
    image_size: ImageSize = None,
    device: Annotated[str, typer.Option(help="cuda, or cpu to try the command out.")] = "cuda",
    variants: Annotated[str, typer.Option(help="Comma-separated, the reference first.")] = (
        "full,paper,fast,random"
    ),
    rounds: Annotated[int, typer.Option(help="Rounds that count.")] = 7,
    data: Annotated[
        Path | None, typer.Option(help="Time loading too: a folder of images, or a .tar shard.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that load in the training.")] = 4,
    processes: Annotated[
        int | None, typer.Option(help="GPUs to train on together; by default all.")
    ] = None,
    minutes: Annotated[float, typer.Option(help="Time for this call; a later one goes on.")] = 30,
    toy: Annotated[
        bool, typer.Option("--toy", help="Batch 2, 64 pixels, one round: only to try it out.")
    ] = False,
) -> None:
    """Run all that only a GPU can answer, in a limited time, and write one report.

    Each measurement is a process of its own; one that runs out of memory is recorded as such.
    The same command goes on where an earlier one ended.
    """
    from elip_plugin.measure.sweep import Sweep, run_sweep
    from elip_plugin.measure.sweep_report import write_report

    if device not in ("cuda", "cpu"):
        raise ConfigError(f"device must be cuda or cpu, got {device!r}")
    if toy:
        batch, rounds, image_size = 2, 1, image_size or 64
    sweep = Sweep(
        model=model,
        batch=batch,
        device=device,
        variants=tuple(variants.split(",")),
        rounds=rounds,
        image_size=image_size,
        data="" if data is None else str(data.resolve()),
        workers=workers,
        processes=processes,
    )
    outcomes = run_sweep(
        sweep, out, minutes=minutes, progress=lambda text: typer.echo(text, err=True)
    )
    typer.echo(f"written to {write_report(sweep, outcomes, out)}")


@app.command(epilog=examples("elip bench startup", "elip bench startup --pairs 20"))
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


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True}, hidden=True
)
def quality() -> None:
    """Print where the study of quality is."""
    raise ElipError(
        "the study of quality is not part of the package any more: in a clone of its repository, "
        "run python -m benchmarks.quality"
    )


def _device(device: str) -> str:
    import torch

    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def _create(model: str, image_size: int | None, device: str) -> HostModel:
    from elip_plugin.hosts.registry import create

    return create(model, image_size=image_size, device=_device(device))
