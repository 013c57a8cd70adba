"""Which trainings a board consists of."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.board.variants import REFERENCE, VARIANTS

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

BUDGETS = ("steps", "operations")


def check(names: Sequence[str]) -> list[str]:
    """Return names of variants, each once, if all are known.

    Args:
        names: Keys of `VARIANTS`.

    Returns:
        The variants in the order of the table; the reference is always among them.

    Raises:
        ValueError: If a name is not known.
    """
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise ValueError(f"variants {unknown} are not known; choose from {list(VARIANTS)}")
    return [name for name in VARIANTS if name in {REFERENCE, *names}]


def training(recipe: DataclassInstance, name: str, budget: str, seed: int) -> dict[str, Any]:
    """Return what distinguishes a training; see `benchmarks.results_log.KEY`.

    Args:
        recipe: How to train.
        name: A key of `VARIANTS`.
        budget: One of `BUDGETS`; unpruned training has "steps" in either case.
        seed: The seed.

    Returns:
        A mapping with the keys of `KEY`.
    """
    return {
        "recipe": asdict(recipe),
        "variant": name,
        "definition": VARIANTS[name].definition,
        "budget": "steps" if name == REFERENCE else budget,
        "seed": seed,
    }


def wanted(
    recipe: DataclassInstance,
    variants: Sequence[str],
    budgets: Sequence[str],
    seeds: Sequence[int],
) -> list[dict[str, Any]]:
    """List the trainings of a grid, seed by seed, so that a part of it is a smaller grid.

    Args:
        recipe: How to train.
        variants: Names of `VARIANTS`.
        budgets: Some of `BUDGETS`.
        seeds: The seeds.

    Returns:
        Trainings, each once; see `training`.
    """
    rows = [
        training(recipe, name, budget, seed)
        for seed in seeds
        for budget in budgets
        for name in variants
    ]
    return [row for i, row in enumerate(rows) if row not in rows[:i]]


def made_by(steps: int, operations: float, device: str) -> dict[str, Any]:
    """Return what a line of the log says of how it was made.

    Args:
        steps: Optimizer steps.
        operations: Counted operations of the training over those of unpruned training.
        device: "cpu", or another device of torch.

    Returns:
        These, and the version of torch; in place of "cpu" the kind of processor.
    """
    return {
        "steps": steps,
        "operations": round(operations, 4),
        "device": platform.machine() if device == "cpu" else device,
        "torch": torch.__version__.partition("+")[0],
    }
