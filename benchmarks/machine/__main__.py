"""`python -m benchmarks.machine`: measurements of one machine, which no user needs."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table

from elip_plugin import ElipError, create
from elip_plugin.cli.options import print_table
from elip_plugin.errors import ConfigError
from elip_plugin.files import write_text

app = typer.Typer(no_args_is_help=True)

Model = Annotated[str, typer.Option(help="Such as elip-half-ViT-B-16.")]
Variants = Annotated[str, typer.Option(help="Comma-separated; the first is the reference.")]
ImageSize = Annotated[int | None, typer.Option(help="Pixels of a side.")]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds that count.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the results.")]


def _say(text: str) -> None:
    typer.echo(text, err=True)


@app.command()
def gpu(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the log and the report.")],
    model: Model = "elip-ViT-B-16",
    batch: Annotated[int, typer.Option(min=1)] = 64,
    image_size: ImageSize = None,
    device: Annotated[str, typer.Option(help="cuda, or cpu to try the command out.")] = "cuda",
    variants: Variants = "full,half,fast,paper,random",
    rounds: Rounds = 7,
    data: Annotated[Path | None, typer.Option(help="Pictures or shards, to time loading.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that load.")] = 4,
    processes: Annotated[int | None, typer.Option(help="GPUs together; by default all.")] = None,
    minutes: Annotated[float, typer.Option(help="Time for this call; a later one goes on.")] = 30,
    toy: Annotated[bool, typer.Option("--toy", help="Batch 2, 64 pixels, one round.")] = False,
) -> None:
    """Run all that only a GPU can answer, in a limited time, and write one report."""
    from benchmarks.machine.sweep import Sweep, run_sweep

    if device not in ("cuda", "cpu"):
        raise ConfigError(f"--device must be cuda or cpu, got {device!r}")
    out.mkdir(parents=True, exist_ok=True)
    if toy:
        batch, rounds, image_size = 2, 1, image_size or 64
    where = "" if data is None else str(data.resolve())
    sweep = Sweep(model, batch, device, variants, rounds, image_size, where, workers, processes)
    typer.echo(f"written to {run_sweep(sweep, out, minutes=minutes, progress=_say)}")


@app.command(hidden=True)
def ddp_step(
    model: Model,
    batch: int = typer.Option(),
    device: str = typer.Option(),
    variants: str = typer.Option(),
    rounds: int = typer.Option(),
    image_size: ImageSize = None,
) -> None:
    """Time the training step of several processes; each of them is started by torchrun."""
    from benchmarks.machine.scaling import time_ddp_step

    names = variants.split(",")
    processes, seconds = time_ddp_step(model, names, batch, device, rounds, image_size)
    if not seconds:
        return  # the first process prints for all
    table = Table("processes", "variant", "step", "pairs per second")
    for name, each in seconds.items():
        table.add_row(str(processes), name, f"{each:.3f} s", f"{processes * batch / each:.1f}")
    print_table(table)


@app.command()
def attention(
    model: Model,
    batch: int = typer.Option(min=1),
    device: str = "cuda",
    precision: str = "fp32",
    variants: Variants = "full,half",
    rounds: Rounds = 7,
    image_size: ImageSize = None,
    out: Out = None,
) -> None:
    """Time the tower and the step without fused attention, else as `elip bench speed`."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from elip_plugin.measure.report import speed_table, write_files
    from elip_plugin.measure.speed import measure_speed

    with sdpa_kernel(SDPBackend.MATH):
        setting, rows = measure_speed(
            create(model, image_size=image_size, device=device),
            variants=variants.split(","),
            passes=["tower", "step"],
            batch=batch,
            precision=precision,
            rounds=rounds,
        )
    typer.echo("attention without a fused kernel:")
    print_table(speed_table(setting, rows))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_files(out, setting, rows)


@app.command()
def loading(
    model: Model,
    data: Annotated[Path, typer.Option(help="Pictures or shards.")],
    batch: Annotated[int, typer.Option(min=1, help="Pictures per batch.")] = 64,
    workers: Annotated[int, typer.Option(min=1, help="Processes that load.")] = 4,
    rounds: Rounds = 7,
    image_size: ImageSize = None,
) -> None:
    """Time reading, decoding and preparing batches, while workers are at the next ones."""
    from benchmarks.machine.loading import time_loading
    from elip_plugin.pictures import find_items

    preprocess = create(model, image_size=image_size, device="meta").preprocess
    seconds = time_loading(find_items([data]), preprocess, batch, workers, rounds)
    typer.echo(
        f"a batch of {batch} takes {seconds:.3f} s with {workers} workers; loading and training "
        "overlap, so the slower of the two sets the pace"
    )


@app.command()
def memory(
    fit: Annotated[str, typer.Option(help="Memory to fill, such as 24GiB.")],
    model: Model = "elip-ViT-B-16",
    image_size: ImageSize = None,
    device: str = "cuda",
    precision: Annotated[str, typer.Option(help="fp32, bf16 (autocast) or pure_bf16.")] = "fp32",
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Of gradients.")] = False,
    variants: Variants = "full,half,fast,paper",
    out: Out = None,
) -> None:
    """Find the largest batch that fits by trying it out on a GPU, beside what is counted.

    On the device cpu it is counted only. What cannot be counted needs about 1 GiB on a GPU: the
    device's context, kernels' workspaces, fragmentation.
    """
    from benchmarks.machine.counting import check_precisions, parse_bytes
    from benchmarks.machine.memory import fit_batches, try_batches

    budget, names = parse_bytes(fit), variants.split(",")
    check_precisions([precision])
    if device != "cpu" and (precision == "pure_bf16" or checkpointing):
        raise ConfigError(
            "--precision pure_bf16 and --checkpointing can be counted, and not tried out: give "
            "--device cpu"
        )
    shapes = create(model, image_size=image_size, device="meta")
    fits = fit_batches(shapes, budget, names, precision, checkpointing)
    if device != "cpu":
        host_model = create(model, image_size=image_size, device=device)
        fits = try_batches(host_model, budget, fits, precision)
    table = Table("variant", "largest batch", "fixed", "per pair", "how")
    for made in fits:
        how = f"tried out; predicted {made.predicted}" if made.measured else "predicted by counting"
        fixed, pair = f"{made.fixed / 2**30:.2f} GiB", f"{made.per_pair / 2**20:.1f} MiB"
        table.add_row(made.variant, str(made.batch), fixed, pair, how)
    print_table(table)
    if out is not None:
        found = {"budget": budget, "precision": precision, "fits": [asdict(f) for f in fits]}
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "memory.json", json.dumps(found, indent=1) + "\n")


@app.command()
def runtimes(
    runtime: Annotated[str, typer.Option(help="Of: torch, compile, onnx, openvino.")],
    model: Model = "elip-ViT-B-16",
    image_size: ImageSize = None,
    variants: Variants = "full,embed",
    batch: Annotated[int, typer.Option(min=1, help="Beside a single picture.")] = 32,
    rounds: Rounds = 7,
    out: Out = None,
) -> None:
    """Time the image tower on the processor in several runtimes: a picture, and a batch."""
    from benchmarks.machine.runtimes import measure_runtimes
    from elip_plugin.measure.speed import processor

    threads = torch.get_num_threads()
    rows = measure_runtimes(
        create(model, image_size=image_size),
        runtime.split(","),
        variants=variants.split(","),
        batches=list(dict.fromkeys((1, batch))),
        rounds=rounds,
        progress=_say,
    )
    table = Table(title=f"image tower of {model}, {processor()}, {threads} threads")
    for name in ("runtime", "batch", "variant", "a batch", "images per second", "of the first",
                 "counted"):  # fmt: skip
        table.add_column(name)
    for row in rows:
        table.add_row(
            row.runtime, str(row.batch), row.variant, f"{1000 * row.seconds:.1f} ms",
            f"{row.batch / row.seconds:.1f}",
            f"{row.ratio:.3f} ({row.low:.2f}-{row.high:.2f})", f"{row.counted:.3f}",
        )  # fmt: skip
    print_table(table)
    if out is not None:
        about = {"model": model, "threads": threads, "rounds": rounds}
        out.mkdir(parents=True, exist_ok=True)
        found = {**about, "rows": [asdict(row) for row in rows]}
        write_text(out / "runtimes.json", json.dumps(found, indent=1) + "\n")


@app.command()
def startup(
    pairs: Annotated[int, typer.Option(min=2, help="Pairs of processes that count.")] = 100,
) -> None:
    """Time an unrelated Python process with and without the start-up file."""
    from benchmarks.machine.startup import measure_startup

    plain, (low, middle, high) = measure_startup(sys.executable, pairs=pairs)
    typer.echo(
        f"{middle:.2f} ms above {plain:.1f} ms without the start-up file: medians of {pairs} pairs "
        f"of processes in turn; quartiles of the difference {low:.2f} to {high:.2f} ms"
    )


@app.command()
def store(
    rows: Annotated[int, typer.Option(min=1, help="Rows of made embeddings.")],
    folder: Annotated[Path, typer.Option(help="Where to write them; it must be empty.")],
) -> None:
    """Time the store of embeddings of `elip check`, with 256 open files allowed."""
    from benchmarks.machine.store import measure_store

    found = measure_store(folder, rows).items()
    typer.echo(f"{rows} rows: " + ", ".join(f"{name} {value:.2f}" for name, value in found))


def main() -> None:
    """Run a command; an error of ours becomes one line."""
    try:
        app()
    except ElipError as error:
        typer.echo(f"machine: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
