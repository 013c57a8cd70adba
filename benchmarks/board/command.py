"""What the commands of the boards share: train with a bar, time, list, print."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from benchmarks import results_log
from benchmarks.board import report
from benchmarks.board.cost import operations, time_phases
from benchmarks.board.measure import ALL, Measure
from benchmarks.board.pairs import Pairs
from benchmarks.board.questions import Question
from benchmarks.board.recipe import BoardRecipe
from benchmarks.board.training import POINTS
from benchmarks.board.variants import REFERENCE, VARIANTS


def train_missing(
    rows: Sequence[dict[str, Any]], log: Path, train_all: Callable[..., None], measure: Measure
) -> None:
    """Train what the log has not yet, with a bar and a line for each result.

    Args:
        rows: Trainings.
        log: The results log.
        train_all: Takes the trainings that are missing, and by keyword `out`, `point` and `done`
            of `benchmarks.pool.run_all`.
        measure: The score that is printed.
    """
    missing = results_log.missing(rows, results_log.read(log))
    typer.echo(f"{len(rows)} trainings, {len(rows) - len(missing)} of them done", err=True)
    console = Console(stderr=True, markup=False, emoji=False)
    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("parts of trainings", total=POINTS * len(missing))

        def done(row: dict[str, Any]) -> None:
            score = f"{measure.name} {100 * row['scores'][ALL][measure.key]:.1f}"
            regime, name, budget = row["recipe"]["regime"], row["variant"], row["budget"]
            text = f"{regime}: {name}, equal {budget}, seed {row['seed']}: {score}"
            console.print(f"{text}, {row['seconds']:.0f} s", highlight=False)

        train_all(missing, out=log, point=lambda: bar.advance(task), done=done)


def write_times(
    path: Path, names: Iterable[str], recipe: BoardRecipe, pairs: Pairs, rounds: int
) -> None:
    """Time the steps of variants in turn and write the times to a JSON file.

    Args:
        path: The file.
        names: Keys of `VARIANTS`.
        recipe: How to train.
        pairs: Where the batch comes from.
        rounds: How many rounds count.
    """
    made = {
        "device": _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__.partition("+")[0],
        "rounds": rounds,
        "steps": time_phases(names, recipe, pairs, rounds),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made, indent=1) + "\n")
    typer.echo(f"written: {path}")


def print_list(recipe: BoardRecipe, questions: Iterable[Question]) -> None:
    """Print the variants with the counted operations of their step, and the questions."""
    table = Table("variant", "what it is", "operations of a step")
    for name, variant in VARIANTS.items():
        table.add_row(name, variant.about, f"{operations(variant, recipe):.2f}")
    console = Console(markup=False, emoji=False)
    console.print(table)
    for question in questions:
        console.print(f"{question.text} ({question.seeds} seeds)", highlight=False)


def print_boards(
    found: Mapping[str, report.Results], measure: Measure, header: Sequence[str]
) -> None:
    """Print a short table for each regime that has results.

    Args:
        found: Results by regime.
        measure: The score that is shown.
        header: The columns of the whole table.
    """
    console = Console(markup=False, emoji=False)
    for regime, results in found.items():
        if (REFERENCE, "steps") in results:
            table = Table(*(header[column] for column in report.SHORT), title=regime)
            for row in report.board(results, {}, measure):
                table.add_row(*(report.cells(row)[column] for column in report.SHORT))
            console.print(table)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
