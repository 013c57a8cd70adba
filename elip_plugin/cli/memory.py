"""What `elip plan --memory` and `elip plan --batch` print."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from elip_plugin.cli.options import print_table
from elip_plugin.errors import ConfigError

if TYPE_CHECKING:
    from elip_plugin.hosts.base import HostModel
    from elip_plugin.measure.fitting import Way

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


def print_memory(host_model: HostModel, asked: MemoryAsked, options: str) -> None:
    """Count the memory of a training step, and print what fits.

    Args:
        host_model: The model, of shapes alone.
        asked: The options about memory.
        options: The options that name this model and plan, for advice.
    """
    from rich.table import Table

    from elip_plugin.label import label_of
    from elip_plugin.measure.fitting import count_ways

    batch, budget = asked.batch, asked.budget
    ways = count_ways(host_model, asked.precision.split(","), progress=_progress)
    title = f"Training step of {label_of(host_model)}"
    title += f" in {asked.memory} less {asked.reserve} reserve" if asked.memory else ""
    table = Table("precision", title=title, title_justify="left")
    columns = ["fixed"]
    columns += [] if budget is None else ["max batch", "pruned"]
    columns += [] if batch is None else [f"batch {batch}", "pruned"]
    for name in columns:
        table.add_column(name, justify="right")
    for way in ways:
        both = way.unpruned, way.pruned
        row = [way.name, _gib(way.unpruned.fixed)]
        if budget is not None:
            row += [str(each.largest(budget)) for each in both]
        if batch is not None:
            row += [_gib(each.peak_at(batch)) for each in both]
        table.add_row(*row)
    print_table(table)
    if not any(way.checkpointing for way in ways):
        typer.echo(f"No rows with checkpointing: {host_model.name} has none.")
    if budget is not None and batch is not None:
        for way in ways:
            fits = _what_fits(host_model, way, batch, budget, options)
            typer.echo(f"{way.name}: batch {batch} {fits}")
    typer.echo(NOT_COUNTED)


def _what_fits(host_model: HostModel, way: Way, batch: int, budget: int, options: str) -> str:
    """Return what makes a batch fit, as the end of a sentence."""
    from elip_plugin.measure.fitting import prune_to_fit

    if way.unpruned.peak_at(batch) <= budget:
        return "fits, pruned or not."
    _progress(f"looking for a plan for {way.name}")
    found = prune_to_fit(host_model, way, batch, budget)
    if found is None:
        return "does not fit; no keep ratios of these stages do it."
    config, counted = found
    given = "this plan; also by " if way.pruned.peak_at(batch) <= budget else ""
    keep = ",".join(f"{stage.keep:g}" for stage in config.stages)
    return f"fits by {given}{options} --keep {keep} ({_gib(counted.peak_at(batch))})."


def _progress(text: str) -> None:
    typer.echo(f"{text} ...", err=True)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
