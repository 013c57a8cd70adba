"""What `elip plan --memory` and `elip plan --batch` print."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class MemoryAsked:
    """The options of `elip plan` that are about memory, as they were given."""

    memory: str
    reserve: str
    batch: int | None
    precision: str

    @property
    def budget(self) -> int | None:
        """Bytes that may be filled; None if no memory was given."""
        from elip_plugin.measure.memory import parse_bytes

        return parse_bytes(self.memory) - parse_bytes(self.reserve) if self.memory else None

    def check(self) -> None:
        """Refuse what cannot be counted."""
        from elip_plugin.measure.memory import check_precisions

        check_precisions(self.precision.split(","))
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"--batch must be 1 or more, got {self.batch}")
        if self.budget is not None and self.budget <= 0:
            raise ConfigError(
                f"--memory {self.memory} less --reserve {self.reserve} leaves nothing"
            )


def print_memory(host_model: HostModel, asked: MemoryAsked) -> None:
    """Count the memory of a training step of a model of shapes, and print what fits."""
    from rich.table import Table

    from elip_plugin.label import label_of
    from elip_plugin.measure.memory import count_options

    batch, budget = asked.batch, asked.budget
    options = count_options(
        host_model,
        asked.precision.split(","),
        progress=lambda text: typer.echo(f"{text} ...", err=True),
    )
    title = f"Training step of {label_of(host_model)}"
    title += f" in {asked.memory} less {asked.reserve} reserve" if asked.memory else ""
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
