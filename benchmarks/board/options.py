"""What the commands of the boards read from their options."""

from __future__ import annotations

import typer

from benchmarks.board import grid


def read_seeds(text: str) -> list[int]:
    """Read "0-7", "3" or "0,2,5"."""
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()):
            raise typer.BadParameter(f"seeds are {text!r}, but must be such as 0-7, 3 or 0,2,5.")
        seeds += range(int(first), int(last or first) + 1)
    return seeds


def read_budgets(text: str) -> list[str]:
    """Read "steps,operations", or one of them."""
    asked = [name.strip() for name in text.split(",")]
    if not set(asked) <= set(grid.BUDGETS):
        raise typer.BadParameter(f"budgets are {asked}, but must be of {list(grid.BUDGETS)}.")
    return asked


def read_variants(text: str) -> list[str]:
    """Read names of variants joined by ";", the reference always among them."""
    try:
        return grid.check([name.strip() for name in text.split(";") if name.strip()])
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
