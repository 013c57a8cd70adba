"""Every error this package raises on purpose; catch `ElipError` to catch them all."""

from __future__ import annotations

import sys
import warnings
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


class ElipDeprecationWarning(DeprecationWarning):
    """A name of an earlier version, which is still read; the message has the new name."""


if not sys.warnoptions:  # Python hides deprecations where a library reads a user's YAML
    warnings.filterwarnings("default", category=ElipDeprecationWarning)


def join_faults(subject: str, faults: Sequence[str]) -> str:
    """Join the faults of a subject, at least one, so that a user can correct them in one go."""
    if len(faults) == 1:
        return f"{subject}: {faults[0]}"
    lines = "".join(f"\n  {i}. {fault}" for i, fault in enumerate(faults, 1))
    return f"{subject}: {len(faults)} faults{lines}"


def nearest(name: object, known: Iterable[object], otherwise: str = "") -> str:
    """Build the hint for an unknown name: the three nearest of those known, or else `otherwise`."""
    names = sorted(map(str, known))
    near = get_close_matches(name, names, n=3, cutoff=0.6) if isinstance(name, str) else []
    return f"did you mean {near}?" if near else otherwise or f"known are {names}"
