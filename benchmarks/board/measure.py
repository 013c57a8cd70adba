"""The score by which a board compares its rows."""

from __future__ import annotations

from dataclasses import dataclass

ALL = "all"
"""The test with all tokens; the others are plans at test time."""


@dataclass(frozen=True)
class Measure:
    """A score, 0 to 1.

    Attributes:
        key: Its name in the results log.
        name: Its name on the page.
        margin: What counts as equal.
        tests: Plans at test time that it is shown for.
    """

    key: str
    name: str
    margin: float
    tests: tuple[str, ...]
