"""Trainings in processes of their own, some at a time; each result is kept when it is there."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing import Manager, get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks import results_log


def run_all(
    trainings: Sequence[dict[str, Any]],
    one: Callable[[dict[str, Any]], dict[str, Any]],
    out: Path,
    *,
    jobs: int,
    threads: int = 0,
    point: Callable[[], None] = lambda: None,
    done: Callable[[dict[str, Any]], None] = lambda _: None,
) -> None:
    """Run trainings and append each result.

    Args:
        trainings: What distinguishes each; see `benchmarks.results_log.KEY`.
        one: Runs one of them, in another process, and returns its result.
        out: The JSON lines file.
        jobs: How many run at a time.
        threads: Threads of each; 0: they share the processor's evenly.
        point: Called for each `tick` of any training.
        done: Called with each result.
    """
    threads = threads or max(1, (os.cpu_count() or 1) // jobs)
    with Manager() as manager:
        ticks = manager.Queue()
        pool = ProcessPoolExecutor(jobs, get_context("spawn"), _start, (threads, ticks))
        futures = {pool.submit(one, row) for row in trainings}
        try:
            while futures:
                ready, futures = wait(futures, timeout=1, return_when=FIRST_COMPLETED)
                while not ticks.empty():
                    ticks.get()
                    point()
                for future in ready:
                    row = future.result()
                    results_log.append(out, row)
                    done(row)
        finally:
            pool.shutdown(wait=not futures, cancel_futures=True)


_ticks: Any = None  # in a child: the queue in which it counts scored parts


def tick() -> None:
    """Count a scored part of the training that this process runs."""
    _ticks.put(None)


def _start(threads: int, ticks: Any) -> None:
    global _ticks
    _ticks = ticks
    torch.set_num_threads(threads)  # with more threads than cores all of them crawl
    torch.set_flush_denormal(True)
    warnings.simplefilter("ignore", FutureWarning)  # of timm
