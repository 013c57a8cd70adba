"""All trainings of the study, some at a time; each result is kept as soon as it is there."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.pool import run_all, tick
from benchmarks.quality.cost import operations, steps_of
from benchmarks.quality.pairs import Pairs, read_pairs
from benchmarks.quality.recipe import BASE, Recipe
from benchmarks.quality.training import run, train_base
from benchmarks.quality.variants import REFERENCE, VARIANTS

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
    """Return what distinguishes a training; see `benchmarks.quality.results_log.KEY`.

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


def train_all(
    trainings: Sequence[dict[str, Any]],
    data: Path,
    out: Path,
    cache_folder: Path,
    *,
    jobs: int,
    device: str = "cpu",
    point: Callable[[], None] = lambda: None,
    done: Callable[[dict[str, Any]], None] = lambda _: None,
) -> None:
    """Run trainings and append each result.

    Args:
        trainings: From `wanted`.
        data: A folder that `benchmarks.data emojis` wrote.
        out: The JSON lines file.
        cache_folder: Where the weights are kept from which continued trainings start.
        jobs: How many run at a time; they share the processor's threads evenly.
        device: Where to train.
        point: Called after each scored part of any training.
        done: Called with each result.
    """
    one = partial(_one, data=data, cache_folder=cache_folder, device=device)
    run_all(trainings, one, out, jobs=jobs, point=point, done=done)


def _one(row: dict[str, Any], data: Path, cache_folder: Path, device: str) -> dict[str, Any]:
    recipe, seed = Recipe(**row["recipe"]), row["seed"]
    variant = VARIANTS[row["variant"]]
    train, held_out = _pairs(data, "train", recipe.styles, recipe.pairs), _pairs(data, "held_out")
    weights = None
    if recipe.regime == "continued":
        key = json.dumps(asdict(BASE), sort_keys=True).encode()
        weights = cache_folder / f"base-{hashlib.sha256(key).hexdigest()[:12]}-{seed}.pt"
        if not weights.exists():
            own = _pairs(data, "train", BASE.styles)
            train_base(weights, _pairs(data, "train"), held_out, own, seed)
    steps = steps_of(variant, recipe, row["budget"], recipe.steps(len(train)))
    result = run(
        variant, recipe, steps, train, held_out, seed,
        weights=weights, device=device, progress=tick,
    )  # fmt: skip
    made = {
        "steps": steps,
        "operations": round(steps * operations(variant, recipe) / recipe.steps(len(train)), 4),
        "device": device if device != "cpu" else platform.machine(),
        "torch": torch.__version__.partition("+")[0],
    }
    return {**row, **made, **result}


@cache
def _pairs(data: Path, split: str, styles: str = "", most: int | None = None) -> Pairs:
    return read_pairs(data, split, styles, most)
