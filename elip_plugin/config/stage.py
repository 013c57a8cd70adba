"""One pruning step of a configuration."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import Any

INCOMPLETE: Any = object()
"""Holds the place of a stage or reducer whose fault is named already."""


@dataclass(frozen=True)
class Stage:
    """One pruning step, done immediately before a block (paper, section 3).

    Attributes:
        block: Index of the block before which tokens are pruned, from 0.
        lookahead: How many blocks, from `block` on, are looked through to score the
            tokens; of the last one only the class token's attention row is computed.
        keep: A ratio in (0, 1) of the patches that enter block 0, 1.0 to skip the
            stage, or a count of tokens from 2 up.
        until: The block before which the dropped tokens come back, in their places, with what
            they were before the stage: they skip the blocks between, and are not merged. None
            drops or merges them for good.
    """

    block: int
    lookahead: int
    keep: float
    until: int | None = None


REQUIRED = tuple(field.name for field in fields(Stage) if field.default is MISSING)
"""Keys that a stage must have."""
