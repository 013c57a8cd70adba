"""All trainings of the study, some at a time; each result is kept as soon as it is there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks.board.cost import operations, steps_of
from benchmarks.board.evaluation import Evaluation
from benchmarks.board.grid import made_by, training
from benchmarks.board.pairs import Pairs
from benchmarks.board.training import run
from benchmarks.board.variants import REFERENCE, VARIANTS
from benchmarks.photos.augment import shift
from benchmarks.photos.folder import read_classes, read_train, read_validation
from benchmarks.photos.recipe import RECIPES, PhotoRecipe
from benchmarks.photos.scores import PROMPT, evaluation
from benchmarks.pool import run_all, tick
from benchmarks.results_log import KEY

SHOTS = 20
"""Photographs of each class that was not trained, of which its mean is made."""


@dataclass(frozen=True)
class Study:
    """What a recipe trains on, and how it is scored."""

    train: Pairs
    evaluation: Evaluation


@cache
def read_study(
    data: Path, cache_folder: Path, classes: int, photos: int, first: int, regime: str
) -> Study:
    """Read what a recipe needs; once in a process.

    Args:
        data: Folder of Tiny ImageNet.
        cache_folder: Folder in which the photographs are kept as arrays.
        classes: How many classes are trained.
        photos: Photographs of each.
        first: How many are left out before those.
        regime: The recipe's; "unseen" needs photographs of the other classes.

    Returns:
        The study.
    """
    names = [name for _, name in read_classes(data)]
    trained = range(0, len(names), len(names) // classes)
    shown = read_train(data, cache_folder, trained, first, photos)
    captions = [PROMPT.format(names[place]) for place in shown.own.tolist()]
    others = [place for place in range(len(names)) if place not in trained]
    shots = read_train(data, cache_folder, others, 0, SHOTS) if regime == "unseen" else None
    validation = read_validation(data, cache_folder)
    return Study(
        Pairs(shown.pictures, captions, shift), evaluation(names, trained, validation, shots)
    )


def study_of(recipe: PhotoRecipe, data: Path, cache_folder: Path) -> Study:
    """Read what a recipe needs; see `read_study`."""
    sizes = recipe.classes, recipe.photos, recipe.first
    return read_study(data, cache_folder, *sizes, recipe.regime)


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
        trainings: From `benchmarks.board.grid.wanted`.
        data: Folder of Tiny ImageNet.
        out: The JSON lines file.
        cache_folder: Folder of the photographs as arrays, and of the trained weights.
        jobs: How many run at a time, each with one thread, so that its digits do not depend on
            how many.
        device: Where to train.
        point: Called after each scored part of any training.
        done: Called with each result.
    """
    for recipe in {PhotoRecipe(**row["recipe"]) for row in trainings}:
        study_of(recipe, data, cache_folder)  # so that no two processes write the same array
    one = partial(run_row, data=data, cache_folder=cache_folder, device=device)
    run_all(trainings, one, out, jobs=jobs, threads=1, point=point, done=done)


def weights_of(row: Mapping[str, Any], cache_folder: Path) -> Path:
    """Return the file of a training's weights.

    Args:
        row: A training, or its result.
        cache_folder: Where they are.

    Returns:
        The file, which need not exist.
    """
    key = json.dumps([row[name] for name in KEY], sort_keys=True).encode()
    return cache_folder / "weights" / f"{hashlib.sha256(key).hexdigest()[:16]}.pt"


def run_row(row: dict[str, Any], data: Path, cache_folder: Path, device: str) -> dict[str, Any]:
    """Train and score what one row of the log asks for.

    Args:
        row: A training.
        data: Folder of Tiny ImageNet.
        cache_folder: Folder of the photographs as arrays, and of the trained weights.
        device: Where to train.

    Returns:
        The row with what was found.
    """
    recipe, seed = PhotoRecipe(**row["recipe"]), row["seed"]
    variant, study = VARIANTS[row["variant"]], study_of(recipe, data, cache_folder)
    weights = None
    if recipe.regime == "continued":
        base = training(RECIPES["scratch"], REFERENCE, "steps", seed)
        weights = weights_of(base, cache_folder)
        if not weights.exists():
            run_row(base, data, cache_folder, device)
    steps = steps_of(variant, recipe, row["budget"], recipe.steps)
    result = run(
        variant, recipe, steps, study.train, study.evaluation, seed,
        weights=weights, keep=weights_of(row, cache_folder), device=device, progress=tick,
    )  # fmt: skip
    share = steps * operations(variant, recipe) / recipe.steps
    return {**row, **made_by(steps, share, device), **result}
