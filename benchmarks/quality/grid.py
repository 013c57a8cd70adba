"""All trainings of the study, some at a time; each result is kept as soon as it is there."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict
from functools import cache
from multiprocessing import Manager, get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality import results_log
from benchmarks.quality.pairs import Pairs, read_pairs
from benchmarks.quality.recipe import Recipe
from benchmarks.quality.training import run
from benchmarks.quality.variants import REFERENCE, SETS, VARIANTS


def choose(names: Sequence[str]) -> list[str]:
    """Return the variants that names of variants and of sets stand for.

    Args:
        names: Keys of `VARIANTS` and of `SETS`.

    Returns:
        The variants, each once, in the order of the table; the reference is always among them.

    Raises:
        ValueError: If a name is not known.
    """
    unknown = [name for name in names if name not in VARIANTS and name not in SETS]
    if unknown:
        raise ValueError(
            f"variants {unknown} are not known; choose from the sets {list(SETS)} or from "
            f"{list(VARIANTS)}"
        )
    chosen = {REFERENCE, *names}
    return [name for name, v in VARIANTS.items() if name in chosen or chosen & set(v.sets)]


def wanted(recipe: Recipe, variants: Sequence[str], seeds: int) -> list[dict[str, Any]]:
    """List the trainings of a grid, seed by seed, so that a part of it is a smaller grid.

    Args:
        recipe: How to train.
        variants: Names of `VARIANTS`.
        seeds: How many seeds, from 0 on.

    Returns:
        Mappings with the keys of `benchmarks.quality.results_log.KEY`.
    """
    return [
        {
            "recipe": asdict(recipe),
            "variant": name,
            "definition": VARIANTS[name].definition,
            "seed": seed,
        }
        for seed in range(seeds)
        for name in variants
    ]


def train_all(
    trainings: Sequence[dict[str, Any]],
    data: Path,
    out: Path,
    *,
    jobs: int,
    epoch: Callable[[], None] = lambda: None,
    done: Callable[[str], None] = lambda _: None,
) -> None:
    """Run trainings and append each result.

    Args:
        trainings: From `wanted`.
        data: A folder that `write_openmoji` wrote.
        out: The JSON lines file.
        jobs: How many run at a time; they share the processor's threads evenly.
        epoch: Called after each epoch of any training.
        done: Called with the name of each training that is done.
    """
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with Manager() as manager:
        ticks = manager.Queue()
        pool = ProcessPoolExecutor(jobs, get_context("spawn"), _start, (threads, ticks))
        futures = {pool.submit(_one, training, data) for training in trainings}
        try:
            while futures:
                ready, futures = wait(futures, timeout=1, return_when=FIRST_COMPLETED)
                while not ticks.empty():
                    ticks.get()
                    epoch()
                for future in ready:
                    row = future.result()
                    results_log.append(out, row)
                    done(f"{row['variant']}, seed {row['seed']}")
        finally:
            pool.shutdown(wait=not futures, cancel_futures=True)


_ticks: Any = None  # in a child: the queue in which it counts epochs


def _start(threads: int, ticks: Any) -> None:
    global _ticks
    _ticks = ticks
    torch.set_num_threads(threads)  # with more threads than cores all of them crawl
    warnings.simplefilter("ignore", FutureWarning)  # of LAVIS' libraries


def _one(training: dict[str, Any], data: Path) -> dict[str, Any]:
    recipe = Recipe(**training["recipe"])
    train, held_out = _pairs(data, recipe.pairs)
    variant, seed = VARIANTS[training["variant"]], training["seed"]
    result = run(variant, recipe, train, held_out, seed, lambda: _ticks.put(None))
    made = {"machine": platform.machine(), "torch": torch.__version__.partition("+")[0]}
    return {**training, **result, **made}


@cache
def _pairs(data: Path, most: int | None) -> tuple[Pairs, Pairs]:
    return read_pairs(data, "train", most), read_pairs(data, "held_out")
