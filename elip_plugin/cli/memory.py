"""What `elip plan --memory` and `elip plan --batch` print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from elip_plugin.hosts.base import HostModel
    from elip_plugin.measure.fitting import Way

NOT_COUNTED = (
    "A prediction, counted without a GPU: weights, gradients, AdamW's moments (fixed), and every "
    "tensor of the step while it lives; attention fused where the model's is. Not counted, hence "
    "--reserve: the device's context, kernels' workspaces, fragmentation, the gradient buckets of "
    "distributed training. Checkpointing computes each block's forward twice."
)


def print_memory(
    host_model: HostModel, precisions: Sequence[str], memory: str, reserve: str, batch: int | None
) -> None:
    """Count the memory of a training step, and print what fits."""
    from rich.console import Console
    from rich.table import Table

    from elip_plugin.errors import ConfigError
    from elip_plugin.measure.fitting import count_ways
    from elip_plugin.measure.memory import parse_bytes

    budget = parse_bytes(memory) - parse_bytes(reserve) if memory else None
    if budget is not None and budget <= 0:
        raise ConfigError(f"memory {memory} less reserve {reserve} leaves nothing")
    ways = count_ways(
        host_model, precisions, progress=lambda text: typer.echo(f"{text} ...", err=True)
    )
    console = Console()
    title = f"Training step of {host_model.name}"
    title += f" in {memory} less {reserve} reserve" if memory else ""
    table = Table(title=title, title_justify="left")
    columns = ["precision", "fixed"]
    columns += [] if budget is None else ["max batch", "pruned"]
    columns += [] if batch is None else [f"batch {batch}", "pruned"]
    for name in columns:
        table.add_column(name, justify="left" if name == "precision" else "right", no_wrap=True)
    for way in ways:
        both = way.unpruned, way.pruned
        row = [way.name, _gib(way.unpruned.weights + 3 * way.unpruned.trained)]
        if budget is not None:
            row += [str(each.largest(budget)) for each in both]
        if batch is not None:
            row += [_gib(each.peak_at(batch)) for each in both]
        table.add_row(*row)
    console.print(table)
    if not any(way.checkpointing for way in ways):
        console.print(f"No rows with checkpointing: {host_model.name} has none.", highlight=False)
    if budget is not None and batch is not None:
        for line in _what_fits(host_model, ways, batch, budget):
            console.print(line, highlight=False)
    console.print(NOT_COUNTED, highlight=False)


def _what_fits(host_model: HostModel, ways: Sequence[Way], batch: int, budget: int) -> list[str]:
    """Return what makes a batch fit, a line for each way to train."""
    from elip_plugin.measure.fitting import prune_to_fit

    lines = []
    for way in ways:
        if way.unpruned.peak_at(batch) <= budget:
            lines.append(f"{way.name}: batch {batch} fits, pruned or not.")
            continue
        typer.echo(f"looking for a plan for {way.name} ...", err=True)
        found = prune_to_fit(host_model, way, batch, budget)
        if found is None:
            lines.append(
                f"{way.name}: batch {batch} does not fit; no keep ratios of these stages do it."
            )
            continue
        config, counted = found
        given = "this plan; also by " if way.pruned.peak_at(batch) <= budget else ""
        keep = ",".join(f"{stage.keep:g}" for stage in config.stages)
        lines.append(
            f"{way.name}: batch {batch} fits by {given}--keep {keep} "
            f"({_gib(counted.peak_at(batch))})."
        )
    return lines


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
