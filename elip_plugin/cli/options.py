"""What several commands have in common: options, examples in the help, tables, checks of paths."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elip_plugin.errors import ConfigError

if TYPE_CHECKING:
    from rich.progress import TaskID
    from rich.table import Table

    from elip_plugin.check.embed import Progress

Model = Annotated[
    str,
    typer.Option(help="Such as ViT-B-16, elip-half-ViT-B-16, or elip_blip_vqa:vqav2."),
]
Plan = Annotated[
    str,
    typer.Option(
        help="A preset (half or third to train, embed for existing weights; level, lowres, fast, "
        "paper), or a file of elip plan -o. By default what the model's name says, else half, or "
        "embed in commands for existing weights."
    ),
]
Keep = Annotated[
    str, typer.Option(help="Other keep ratios for the plan's stages, such as 0.9,0.65,0.4.")
]
Checkpoint = Annotated[
    str,
    typer.Option(help="Weights: a file, a tag of OpenCLIP's, or a folder of save_pretrained."),
]
Images = Annotated[
    list[Path],
    typer.Option(help="A folder of pictures or .tar shards, or one of either; repeatable."),
]
RandomWeights = Annotated[
    bool, typer.Option("--random", help="Take random weights, only to try the command out.")
]
ImageSize = Annotated[
    int | None, typer.Option(min=1, help="Pixels of a side; by default the model's own.")
]
Device = Annotated[str, typer.Option(help="cpu or cuda; by default cuda where there is one.")]
OutFolder = Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the results.")]


def examples(*commands: str) -> str:
    """Return the end of a command's help: its examples, a line each."""
    return "\n\n".join(("Examples:", *commands))


def print_table(table: Table) -> None:
    """Print a table; where nobody watches, as in a pipe, it is as wide as it needs to be.

    Its title stands above it on a line of its own, which is not cut to the table's width.
    """
    from rich.console import Console

    if table.title:
        typer.echo(table.title)
        table.title = None
    console = Console(markup=False, emoji=False)  # "[lavis]" of a command is no style
    if not console.is_terminal:
        unlimited = console.options.update(max_width=10_000)
        console.width = max(console.width, console.measure(table, options=unlimited).maximum)
    console.print(table)


def check_file(out: Path, *suffixes: str) -> None:
    """Refuse a file that cannot be written, before any work is done for it."""
    if out.suffix not in suffixes:
        raise ConfigError(f"--out {str(out)!r} must end in {' or '.join(suffixes)}")
    if not out.parent.is_dir():
        raise ConfigError(f"--out {str(out)!r}: the folder {str(out.parent)!r} does not exist")
    if out.is_dir():
        raise ConfigError(f"--out {str(out)!r} is a folder: name a file")


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Show a bar for each thing that is done, with how many a second, on stderr."""
    from rich.console import Console
    from rich.progress import (
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.finished_speed or task.speed or 0:.0f}/s")

    first = Progress.get_default_columns()[:2]
    columns = (*first, MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True, markup=False, emoji=False)) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what)
            bars.update(tasks[what], completed=done, total=total)

        yield show
