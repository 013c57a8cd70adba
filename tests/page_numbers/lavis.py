"""What docs/lavis.md says by the logs."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.board.variants import REFERENCE
from page_numbers.logs import over


def sentences() -> Iterator[str]:
    yield f"ToMe lost {-100 * over('tome 0.5', REFERENCE).mean:.0f} points of right answers"


NO_LOG = (
    "transformers below 4.27",
    "transformers 4.57",
)
"""Versions."""
