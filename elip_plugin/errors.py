"""Every error this package raises on purpose; catch `ElipError` to catch them all."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class ElipError(Exception):
    """Root of the package's errors."""


class ConfigError(ElipError, ValueError):
    """A configuration that no tower could satisfy."""


class PlanError(ElipError, ValueError):
    """A configuration that does not fit this tower's depth or patch count."""


class GuideError(ElipError, ValueError):
    """A text guide of the wrong shape, or one given where none may be used."""


class UnsupportedModelError(ElipError, TypeError):
    """A model, tower or mode that cannot be pruned."""


class UnknownTowerError(UnsupportedModelError):
    """A tower that its host does not know, and that may be described as any other ViT."""


class MissingHostError(ElipError, ImportError):
    """A host library that is not installed."""


class MissingPackageError(ElipError, ImportError):
    """A package of an extra of this one that is not installed."""


class UnknownModelError(ElipError, KeyError):
    """A name that no host offers."""

    def __str__(self) -> str:
        """Return the message as written (a `KeyError` would print its repr)."""
        return str(self.args[0])


class TraceError(ElipError, ValueError):
    """A trace that is asked for what it does not hold."""


class DataError(ElipError, ValueError):
    """A data set that cannot be written or read as asked."""


MOST_FAULTS = 20
"""Faults that an error names; of a file with more, the first ones."""

LONGEST_NAME = 100
"""Characters of a name that is compared with those known."""

_short = reprlib.Repr()
_short.maxlevel, _short.maxlist, _short.maxtuple, _short.maxdict = 3, 6, 6, 6
_short.maxstring = _short.maxother = 120


def shown(value: object) -> str:
    """Return a value for an error message, shortened: a file may hold any number of values."""
    try:
        return _short.repr(value)
    except Exception:  # of somebody's repr, or an integer of more digits than Python writes
        return f"a {type(value).__name__}"


def join_faults(subject: str, faults: Sequence[str]) -> str:
    """Join the faults of a subject, at least one, so that a user can correct them in one go."""
    if len(faults) == 1:
        return f"{subject}: {faults[0]}"
    lines = "".join(f"\n  {i}. {fault}" for i, fault in enumerate(faults[:MOST_FAULTS], 1))
    more = f"\n  and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
    return f"{subject}: {len(faults)} faults{lines}{more}"


def nearest(name: object, known: Iterable[object], otherwise: str = "") -> str:
    """Build the hint for an unknown name: the three nearest of those known, or else `otherwise`."""
    names = sorted(map(str, known))
    short = name[:LONGEST_NAME] if isinstance(name, str) else ""
    near = get_close_matches(short, names, n=3, cutoff=0.6)
    return f"did you mean {near}?" if near else otherwise or f"known are {names}"
