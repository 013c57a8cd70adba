"""`elip bench`: what pruning saves, measured on this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elip_plugin.cli.options import (
    Batch,
    Data,
    Device,
    ImageSize,
    Model,
    OutFolder,
    Precision,
    Rounds,
    Variants,
    Workers,
    examples,
    make_folder,
    print_table,
)
from elip_plugin.errors import ConfigError, ElipError
from elip_plugin.files import write_text

if TYPE_CHECKING:
    from elip_plugin.hosts.base import HostModel

app = typer.Typer(
    help="Measure what pruning saves, and what it costs.",
    epilog=examples("elip bench speed --batch 8", "elip bench memory --fit 24GiB"),
    no_args_is_help=True,
)


@app.command(
    epilog=examples(
        "elip bench speed --model elip-ViT-B-16 --batch 8",
        "elip bench speed --variants full,half --passes step --rounds 15 -o results",
        "elip bench speed --runtime onnx,openvino,torch,compile",
    )
)
def speed(
    model: Model = "elip-ViT-B-16",
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Pairs per batch: 8, with --runtime 1 (latency) and 32."),
    ] = None,
    image_size: ImageSize = None,
    device: Device = "",
    precision: Precision = "fp32",
    variants: Variants = "",
    passes: Annotated[str, typer.Option(help="Of: inference, tower, step.")] = (
        "inference,tower,step"
    ),
    rounds: Rounds = 7,
    compile: Annotated[bool, typer.Option("--compile", help="Compile each variant.")] = False,
    attention: Annotated[
        str, typer.Option(help="fused (torch's choice) or plain (no fused kernel).")
    ] = "fused",
    data: Data = None,
    workers: Workers = 4,
    runtime: Annotated[
        str, typer.Option(help="Time the image tower in: torch, compile, onnx, openvino.")
    ] = "",
    out: OutFolder = None,
) -> None:
    """Time variants in turn, beside what they cost in arithmetic and memory."""
    from elip_plugin.measure.parts import describe_parts, measure_parts
    from elip_plugin.measure.report import slower_than_unpruned, speed_table, write_files
    from elip_plugin.measure.speed import measure_speed

    if out is not None:
        make_folder(out)
    if runtime:
        names = variants or "full,embed"
        _runtimes(model, image_size, runtime.split(","), names.split(","), batch or 32, rounds, out)
        return
    batch = batch or 8
    host_model = _create(model, image_size, device)
    load = None if data is None else _loader(host_model, data, batch)
    setting, rows = measure_speed(
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
    print_table(speed_table(setting, rows))
    lines, parts = slower_than_unpruned(rows), None
    if {"tower", "step"} <= {*passes.split(",")}:
        parts = measure_parts(
            host_model,
            batch=batch,
            precision=precision,
            rounds=rounds,
            load=load,
            workers=workers,
        )
        lines += describe_parts(rows, parts)
    for line in lines:
        typer.echo(line)
    if out is not None:
        write_files(out, setting, rows, parts)


def _runtimes(
    model: str,
    image_size: int | None,
    runtimes: list[str],
    variants: list[str],
    batch: int,
    rounds: int,
    out: Path | None,
) -> None:
    """Time variants in other runtimes: a single image, and a batch."""
    import torch

    from elip_plugin.measure.report import runtimes_table
    from elip_plugin.measure.runtimes import measure_runtimes

    rows = measure_runtimes(
        _create(model, image_size, "cpu"),
        runtimes,
        variants=variants,
        batches=list(dict.fromkeys((1, batch))),
        rounds=rounds,
        progress=lambda text: typer.echo(text, err=True),
    )
    print_table(runtimes_table(model, torch.get_num_threads(), rows))
    if out is not None:
        about = {"model": model, "threads": torch.get_num_threads(), "rounds": rounds}
        found = {**about, "rows": [asdict(row) for row in rows]}
        write_text(out / "runtimes.json", json.dumps(found, indent=1) + "\n")


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
    variants: Variants = "full,half,fast,paper",
    out: OutFolder = None,
) -> None:
    """Find the largest batch that fits, unpruned and pruned: on a GPU by trying it out."""
    from rich.table import Table

    from elip_plugin.measure.memory import check_precisions, fit_batches, parse_bytes, try_batches

    budget, names = parse_bytes(fit), variants.split(",")
    check_precisions([precision])
    on_gpu = _device(device) != "cpu"
    if on_gpu and precision == "pure_bf16":
        raise ConfigError(
            "pure_bf16 can be counted, and not tried out: give --device cpu, or --precision bf16"
        )
    if out is not None:
        make_folder(out)
    fits = fit_batches(_create(model, image_size, "meta"), budget, names, precision)
    if on_gpu:
        fits = try_batches(_create(model, image_size, device), budget, fits, precision)
    table = Table("variant", "largest batch", "whatever the batch", "each pair", "how")
    for made in fits:
        how = f"tried out; predicted {made.predicted}" if made.measured else "predicted by counting"
        fixed, pair = f"{made.fixed / 2**30:.2f} GiB", f"{made.per_pair / 2**20:.1f} MiB"
        table.add_row(made.variant, str(made.batch), fixed, pair, how)
    print_table(table)
    if out is not None:
        found = {"budget": budget, "precision": precision, "fits": [asdict(f) for f in fits]}
        write_text(out / "memory.json", json.dumps(found, indent=1) + "\n")


@app.command(
    epilog=examples(
        "elip bench gpu --model elip-ViT-B-16 --batch 128 -o gpu",
        "elip bench gpu --model elip-ViT-S-16 --device cpu --toy -o toy",
    )
)
def gpu(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the log and the report.")],
    model: Model = "elip-ViT-B-16",
    batch: Batch = 64,
    image_size: ImageSize = None,
    device: Annotated[str, typer.Option(help="cuda, or cpu to try the command out.")] = "cuda",
    variants: Variants = "full,half,fast,paper,random",
    rounds: Rounds = 7,
    data: Data = None,
    workers: Workers = 4,
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

    if device not in ("cuda", "cpu"):
        raise ConfigError(f"device must be cuda or cpu, got {device!r}")
    make_folder(out)
    if toy:
        batch, rounds, image_size = 2, 1, image_size or 64
    where = "" if data is None else str(data.resolve())
    sweep = Sweep(model, batch, device, variants, rounds, image_size, where, workers, processes)
    report = run_sweep(
        sweep, out, minutes=minutes, progress=lambda text: typer.echo(text, err=True)
    )
    typer.echo(f"written to {report}")


@app.command(hidden=True)
def together(
    model: Model,
    batch: Batch,
    device: Device,
    variants: Variants,
    rounds: Rounds,
    image_size: ImageSize = None,
) -> None:
    """Time the training step of several processes; each of them is started by torchrun."""
    from rich.table import Table

    from elip_plugin.measure.scaling import time_together

    names = variants.split(",")
    processes, seconds = time_together(model, names, batch, device, rounds, image_size)
    if not seconds:
        return  # the first process prints for all
    table = Table("processes", "variant", "step", "pairs per second")
    for name, each in seconds.items():
        table.add_row(str(processes), name, f"{each:.3f} s", f"{processes * batch / each:.1f}")
    print_table(table)


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
