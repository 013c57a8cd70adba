"""The store of embeddings at a size: time and memory, with 256 open files allowed."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import numpy as np

from elip_plugin.check.store import Store

FILES, WIDTH, BATCH = 256, 512, 256


def measure_store(folder: Path, rows: int) -> dict[str, float]:
    """Add rows of made embeddings, find them again, and read them all in order and out of order.

    Args:
        folder: An empty folder.
        rows: How many.

    Returns:
        Seconds by what is done, and the memory of this process without the mapped files, in MiB.
    """
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))
    generator = np.random.default_rng(0)
    made = generator.standard_normal((BATCH, WIDTH), dtype=np.float32)
    keys = [f"{i:032x}" for i in range(rows)]
    seconds = {}
    start = time.perf_counter()
    with Store(folder).adding() as add:
        for first in range(0, rows, BATCH):
            part = keys[first : first + BATCH]
            add(part, made[: len(part)])
    seconds["adding"] = time.perf_counter() - start
    start = time.perf_counter()
    assert (Store(folder).places(keys) >= 0).all()
    seconds["what is there"] = time.perf_counter() - start
    start = time.perf_counter()
    found = Store(folder).rows(keys)
    sum(float(found[i : i + BATCH].sum()) for i in range(0, rows, BATCH))
    seconds["reading"] = time.perf_counter() - start
    start = time.perf_counter()
    assert Store(folder).rows(keys[::-1]).shape == (rows, WIDTH)
    seconds["another order"] = time.perf_counter() - start
    status = Path("/proc/self/status").read_text().split("RssAnon:")[1]
    return {**seconds, "MiB besides the mapped files": int(status.split()[0]) / 2**10}
