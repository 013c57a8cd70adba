"""What docs/speed.md says by the logs."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import speed


def sentences() -> Iterator[str]:
    run = speed.read("choosing")
    row = run.by_pass["fast", "step"]
    yield (
        f"its step takes {row['ratio']:.2f} ({row['low']:.2f}-{row['high']:.2f}) of that of random "
        f"dropping with the same counts"
    )
