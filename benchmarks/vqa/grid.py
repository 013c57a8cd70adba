"""All trainings of the study; what continued ones start from is trained once and kept."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.pool import run_all
from benchmarks.vqa.naming import learn_names
from benchmarks.vqa.recipe import BASE_STEPS, CONTINUED, EMOJIS, NAMING, VqaRecipe
from benchmarks.vqa.scenes import Questions, make, read
from benchmarks.vqa.training import build, operations, train
from benchmarks.vqa.variants import REFERENCE, VARIANTS

BUDGETS = ("steps", "operations", "none")
"""As many steps, or operations, as unpruned training; or none: the trained model as it is."""


def recipe_of(regime: str, source: str = EMOJIS, **sizes: Any) -> VqaRecipe:
    """Return the recipe of a regime.

    Args:
        regime: "scratch" or "continued".
        source: What the pictures show.
        **sizes: Fields of the recipe that differ.

    Returns:
        The recipe.
    """
    sizes = {"source": source, "naming": NAMING[source], **sizes}
    return VqaRecipe(**{**(CONTINUED if regime == "continued" else {}), **sizes})


def check(names: Sequence[str]) -> list[str]:
    """Return names of variants in the order of the table, the reference always among them.

    Args:
        names: Keys of `VARIANTS`.

    Returns:
        The names, each once.

    Raises:
        ValueError: If a name is not known.
    """
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise ValueError(f"variants {unknown} are not known; choose from {list(VARIANTS)}")
    return [name for name in VARIANTS if name in {REFERENCE, *names}]


def wanted(
    recipe: VqaRecipe, variants: Sequence[str], budgets: Sequence[str], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """List trainings, seed by seed, by what distinguishes them in the results log.

    Args:
        recipe: How to train.
        variants: Names of `VARIANTS`.
        budgets: Some of `BUDGETS`; unpruned training has "steps" in place of "operations".
        seeds: The seeds.

    Returns:
        Trainings, each once.
    """
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        for budget in budgets:
            for name in variants:
                row = {
                    "recipe": asdict(recipe),
                    "variant": name,
                    "definition": VARIANTS[name].definition,
                    "budget": "steps" if (name, budget) == (REFERENCE, "operations") else budget,
                    "seed": seed,
                }
                if row not in rows:
                    rows.append(row)
    return rows


def train_all(
    rows: Sequence[dict[str, Any]],
    data: Path,
    pictures: Path,
    out: Path,
    *,
    jobs: int,
    done: Callable[[dict[str, Any]], None],
) -> None:
    """Run trainings and append each result.

    Args:
        rows: From `wanted`.
        data: Folder of scenes and of starting weights.
        pictures: Folder that `python -m benchmarks.data emojis` wrote, or Tiny ImageNet's.
        out: The JSON lines file.
        jobs: How many run at a time.
        done: Called with each result.
    """
    recipes = [VqaRecipe(**row["recipe"]) for row in rows]
    for recipe in recipes:
        make(recipe, data, pictures)
    # First what several rows start from, so that no two processes train the same.
    base = {weights_of(recipe, data, row["seed"]): (recipe, row["seed"])
            for recipe, row in zip(recipes, rows) if recipe.regime == "continued"}  # fmt: skip
    bases = [
        {"recipe": asdict(recipe), "seed": seed, "base": True}
        for path, (recipe, seed) in base.items()
        if not path.exists()
    ]
    one = partial(run_row, data=data, pictures=pictures)
    run_all(bases, one, out.with_suffix(".bases.jsonl"), jobs=jobs)
    run_all(rows, one, out, jobs=jobs, done=done)


def base_of(recipe: VqaRecipe) -> VqaRecipe:
    """Return the recipe of the unpruned training that a continued one starts from."""
    sizes = {key: value for key, value in asdict(recipe).items() if key not in CONTINUED}
    return VqaRecipe(**{**sizes, "steps": BASE_STEPS[recipe.source]})


def weights_of(recipe: VqaRecipe, data: Path, seed: int) -> Path:
    """Return the file of the weights that a continued training starts from."""
    key = json.dumps(asdict(base_of(recipe)), sort_keys=True).encode()
    return data / f"vqa-{hashlib.sha256(key).hexdigest()[:12]}-{seed}.pt"


def run_row(row: dict[str, Any], data: Path, pictures: Path) -> dict[str, Any]:
    """Train and score what one row of the table asks for; return the row with what was found."""
    recipe, seed = VqaRecipe(**row["recipe"]), row["seed"]
    vocabulary = make(recipe, data, pictures)
    questions, held_out = _questions(recipe, data, "train"), _questions(recipe, data, "held_out")
    weights = weights_of(recipe, data, seed) if recipe.regime == "continued" else None
    if row.get("base"):
        base = base_of(recipe)
        model = build(base, vocabulary, seed)
        learn_names(model, base, questions.scenes, seed)
        model.visual_encoder.requires_grad_(not base.naming)
        found = train(model, None, base, base.steps, questions, held_out, seed)
        assert weights is not None
        partial_file = weights.with_suffix(".partial")
        torch.save(model.state_dict(), partial_file)
        partial_file.rename(weights)  # a killed run leaves no half a file
        return {**row, **found}
    variant = VARIANTS[row["variant"]]
    config = variant.config(recipe.regime)
    model, cost = build(recipe, vocabulary, seed, weights), 1.0
    if config is not None:
        cost = operations(model, config, questions.samples(list(range(recipe.batch))))
        model = build(recipe, vocabulary, seed, weights)  # ALBEF's momentum encoder has moved
    if weights is None:
        learn_names(model, recipe, questions.scenes, seed)
    steps = {"none": 0, "steps": recipe.steps, "operations": round(recipe.steps / cost)}
    found = train(model, config, recipe, steps[row["budget"]], questions, held_out, seed)
    return {
        **row,
        "steps": steps[row["budget"]],
        "operations": round(cost, 4),
        "device": platform.machine(),
        "torch": torch.__version__.partition("+")[0],
        **found,
    }


@cache
def _questions(recipe: VqaRecipe, data: Path, split: str) -> Questions:
    return read(recipe, data, split)
