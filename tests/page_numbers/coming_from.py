"""What docs/coming_from.md says by the logs."""

from __future__ import annotations

from collections.abc import Iterator

from page_numbers.logs import asked, bare


def sentences() -> Iterator[str]:
    found = asked("Does merging by ToMe")
    yield f"scored {bare(found)} points above random half (emojis, {found.seeds} seeds)"


NO_LOG = ("0.7, 0.49, 0.34 for 0.7 at three layers",)
"""A ratio to the power of 1, 2, 3."""
