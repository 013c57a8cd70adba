"""What `elip plan --memory` and `elip plan --batch` print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from elip_plugin.cli.options import print_table
from elip_plugin.errors import ConfigError

if TYPE_CHECKING:
    from elip_plugin.hosts.base import HostModel

NOT_COUNTED = (
    "A prediction, counted without a GPU: weights, gradients, AdamW's moments (fixed), and every "
    "tensor of the step while it lives; attention fused where the model's is. Not counted, hence "
    "--reserve: the device's context, kernels' workspaces, fragmentation, the gradient buckets of "
    "distributed training. Checkpointing computes each block's forward twice."
)


def read_budget(memory: str, reserve: str) -> int | None:
    """Return the bytes of --memory less --reserve; None if no memory was given."""
    from elip_plugin.measure.memory import parse_bytes

    if not memory:
        return None
    budget = parse_bytes(memory) - parse_bytes(reserve)
    if budget <= 0:
        raise ConfigError(f"--memory {memory} less --reserve {reserve} leaves nothing")
    return budget


def print_memory(
    host_model: HostModel, precisions: Sequence[str], budget: int | None, batch: int | None
) -> None:
    """Count the memory of a training step of a model of shapes, and print what fits."""
    from rich.table import Table

    from elip_plugin.label import label_of
    from elip_plugin.measure.memory import count_options

    options = count_options(
        host_model, precisions, progress=lambda text: typer.echo(f"{text} ...", err=True)
    )
    title = f"Training step of {label_of(host_model)}"
    title += "" if budget is None else f" in {_gib(budget)}, which is --memory less --reserve"
    table = Table("precision", title=title)
    columns = ["fixed"]
    columns += [] if budget is None else ["max batch", "pruned"]
    columns += [] if batch is None else [f"batch {batch}", "pruned"]
    for name in columns:
        table.add_column(name, justify="right")
    for option in options:
        both = option.unpruned, option.pruned
        row = [_gib(option.unpruned.fixed)]
        if budget is not None:
            row += [str(step.largest(budget)) for step in both]
        if batch is not None:
            row += [_gib(step.peak_at(batch)) for step in both]
        table.add_row(option.name, *row)
    print_table(table)
    if not any(option.checkpointing for option in options):
        typer.echo(f"No rows with checkpointing: {host_model.name} has none.")
    typer.echo(NOT_COUNTED)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
