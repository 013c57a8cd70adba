"""What several commands have in common: options, examples in the help, tables, checks of paths."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elip_plugin.cli.completion import complete_model
from elip_plugin.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

Model = Annotated[
    str,
    typer.Option(
        help="Such as elip-ViT-B-16, or elip_blip_vqa:vqav2.", autocompletion=complete_model
    ),
]
Preset = Annotated[
    str,
    typer.Option(
        help="half (recommended), level, third, lowres, embed; or paper and fast, which cost more "
        "than half and did not score higher. By default the model's own."
    ),
]
Keep = Annotated[
    str, typer.Option(help="Keep ratios of the preset's stages, such as 0.9,0.65,0.4.")
]
ImageSize = Annotated[
    int | None, typer.Option(help="Pixels of a side; by default the model's own.")
]
Device = Annotated[str, typer.Option(help="cpu or cuda; by default cuda where there is one.")]
Batch = Annotated[int, typer.Option(min=1, help="Pairs per batch, in each process.")]
Precision = Annotated[str, typer.Option(help="fp32 or bf16 (autocast).")]
Variants = Annotated[
    str, typer.Option(help="Comma-separated, the first is the reference; by default all.")
]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds that count.")]
Data = Annotated[
    Path | None, typer.Option(help="Time loading too: a folder of images, or a .tar shard.")
]
Workers = Annotated[int, typer.Option(min=1, help="Processes that load in the training.")]
OutFolder = Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the results.")]


def examples(*commands: str) -> str:
    """Return the end of a command's help: its examples, a line each."""
    return "\n\n".join(("Examples:", *commands))


def print_table(table: Table) -> None:
    """Print a table; where nobody watches, as in a pipe, it is as wide as it needs to be."""
    from rich.console import Console

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


def make_folder(out: Path) -> None:
    """Make a folder for results, and its parents."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {str(out)!r} is no folder that can be made: {error}") from error
