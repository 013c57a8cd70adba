"""All trainings of the study, some at a time; each result is kept as soon as it is there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks.board.cost import operations, steps_of
from benchmarks.board.grid import made_by
from benchmarks.board.own import add_reducers
from benchmarks.board.pairs import Pairs
from benchmarks.board.training import run
from benchmarks.board.variants import VARIANTS
from benchmarks.pool import run_all, tick
from benchmarks.quality.pairs import read_pairs
from benchmarks.quality.recipe import BASE, Recipe
from benchmarks.quality.scores import evaluation
from benchmarks.quality.training import train_base


def train_all(
    trainings: Sequence[dict[str, Any]],
    data: Path,
    out: Path,
    cache_folder: Path,
    *,
    jobs: int,
    device: str = "cpu",
    reducers: Path | None = None,
    point: Callable[[], None] = lambda: None,
    done: Callable[[dict[str, Any]], None] = lambda _: None,
) -> None:
    """Run trainings and append each result.

    Args:
        trainings: From `benchmarks.board.grid.wanted`.
        data: A folder that `benchmarks.data emojis` wrote.
        out: The JSON lines file.
        cache_folder: Where the weights are kept from which continued trainings start.
        jobs: How many run at a time; they share the processor's threads evenly.
        device: Where to train.
        reducers: A file that registers reducers of the trainings; see `board.own`.
        point: Called after each scored part of any training.
        done: Called with each result.
    """
    one = partial(_one, data=data, cache_folder=cache_folder, device=device, reducers=reducers)
    run_all(trainings, one, out, jobs=jobs, point=point, done=done)


def _one(
    row: dict[str, Any], data: Path, cache_folder: Path, device: str, reducers: Path | None
) -> dict[str, Any]:
    if reducers is not None:
        add_reducers(reducers)
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
    unpruned = recipe.steps(len(train))
    steps = steps_of(variant, recipe, row["budget"], unpruned)
    result = run(
        variant, recipe, steps, train, evaluation(train, held_out), seed,
        weights=weights, device=device, progress=tick,
    )  # fmt: skip
    share = steps * operations(variant, recipe) / unpruned
    return {**row, **made_by(steps, share, device), **result}


@cache
def _pairs(data: Path, split: str, styles: str = "", most: int | None = None) -> Pairs:
    return read_pairs(data, split, styles, most)
