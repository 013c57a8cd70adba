"""What may reduce the tokens: ELIP, and published methods to compare it with, one file each.

Each is written from its paper. Those that take the presets' stages remove the same number of
token-layers from the same configuration, so that only the choice differs. Other packages add
theirs by the entry-point group `elip_plugin.reducers`, whose entries name a `Reducer` subclass;
scripts and notebooks by `register_reducer`.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import entry_points
from inspect import get_annotations
from typing import Any, TypeVar

from elip_plugin.core.context import StageContext
from elip_plugin.core.select import Selection
from elip_plugin.core.stage import PlannedStage, block_macs
from elip_plugin.errors import ConfigError, nearest, shown
from elip_plugin.reducers.base import Reducer, option_faults
from elip_plugin.reducers.cluster import Cluster
from elip_plugin.reducers.elip import Elip
from elip_plugin.reducers.evit import EViT
from elip_plugin.reducers.gumbel import Gumbel
from elip_plugin.reducers.pool import Pool
from elip_plugin.reducers.random import Random
from elip_plugin.reducers.similarity import FOR_INSTRUCTIONS, FOR_QUESTIONS, Similarity
from elip_plugin.reducers.tome import Pairs, ToMe, merge_pairs
from elip_plugin.reducers.unique import Unique
from elip_plugin.reducers.ward import Anywhere, Ward

GROUP = "elip_plugin.reducers"
OWN = (Elip, Gumbel, Similarity, EViT, Unique, ToMe, Ward, Random, Cluster, Pool)

__all__ = [
    "FOR_INSTRUCTIONS",
    "FOR_QUESTIONS",
    "Anywhere",
    "Pairs",
    "PlannedStage",
    "Reducer",
    "Selection",
    "StageContext",
    "ToMe",
    "block_macs",
    "find_reducer",
    "merge_pairs",
    "option_faults",
    "reducers",
    "register_reducer",
]

_registered: dict[str, type[Reducer]] = {}  # those of this process, by `register_reducer`
_Class = TypeVar("_Class", bound=type[Reducer])


@functools.cache
def reducers() -> dict[str, Reducer]:
    """List the reducers of this package and of installed ones by name, with default options.

    Raises a ConfigError if an entry is no reducer, or takes a name that is taken.
    """
    found: dict[str, Reducer] = {cls.name: cls() for cls in OWN}
    for entry in entry_points(group=GROUP):
        try:
            cls = entry.load()
        except Exception as error:  # somebody's broken package must not take the others along
            warnings.warn(
                f"the reducer {entry.value} could not be imported ({error!r}): install its package "
                "again, or uninstall it",
                stacklevel=2,
            )
            continue
        if fault := _class_fault(cls, found):
            raise ConfigError(f"{entry.value} of the entry-point group {GROUP} {fault}")
        found[cls.name] = cls()
    return found | {name: cls() for name, cls in _registered.items()}


def _class_fault(cls: Any, known: Mapping[str, Reducer]) -> str:
    """Say why a class cannot be added to the known reducers; "" if it can."""
    if not (isinstance(cls, type) and issubclass(cls, Reducer)):
        return "is no Reducer: give a subclass of elip_plugin.reducers.Reducer"
    if not isinstance(getattr(cls, "name", None), str):
        return "has no name: give the class an attribute `name`, a string"
    options = {key for key, kind in get_annotations(cls).items() if "ClassVar" not in str(kind)}
    if options - {option.name for option in fields(cls)}:
        return "has options and is no dataclass: decorate it with @dataclass(frozen=True)"
    if cls.name in known:
        return (
            f"takes the name {cls.name!r}, which {type(known[cls.name]).__module__} has: give it "
            "another name"
        )
    return ""


def _place(cls: Any) -> tuple[Any, Any]:
    """Return where a class is defined, which is the same when it is defined again."""
    return getattr(cls, "__module__", None), getattr(cls, "__qualname__", None)


def register_reducer(cls: _Class) -> _Class:
    """Make a reducer known by its name in this process, as in a script or a notebook.

    A package names its reducers in the entry-point group `elip_plugin.reducers` instead, so that
    commands find them too. A class that is defined again, as by running a notebook's cell again,
    takes the place of the earlier one; models that are pruned already keep theirs.

    Args:
        cls: A subclass of `Reducer`; one with options is a frozen dataclass.

    Returns:
        The class, so that this can be a decorator.

    Raises:
        ConfigError: If it is no `Reducer`, has no name or one that is taken, has options and is no
            dataclass, or has presets, which only an entry point can add.

    Example:
        >>> import elip_plugin
        >>> @elip_plugin.register_reducer
        ... class Longest(Reducer):
        ...     name = "longest"
        ...     def scores(self, x, stage, context):
        ...         return x[:, context.prefix :].norm(dim=-1)
        >>> elip_plugin.ElipConfig.from_mapping({"reducer": "longest"}).reducer.name
        'longest'
    """
    known = {
        name: reducer
        for name, reducer in reducers().items()
        if name not in _registered or _place(type(reducer)) != _place(cls)
    }
    if fault := _class_fault(cls, known):
        raise ConfigError(f"{cls!r} {fault}")
    if vars(cls).get("presets"):
        raise ConfigError(
            f"{cls.__qualname__} has presets, which only a reducer of an installed package can "
            f"add (by the entry-point group {GROUP}): leave `presets` out, and give the config"
        )
    _registered[cls.name] = cls
    reducers.cache_clear()
    return cls


def find_reducer(name: str) -> Reducer:
    """Find a reducer by name.

    Args:
        name: What a configuration asks for by `reducer`.

    Returns:
        The reducer, with its default options.

    Raises:
        ConfigError: If there is none of that name.

    Example:
        >>> find_reducer("tome").reads_text
        False
    """
    known = reducers()
    if not isinstance(name, str) or name not in known:
        raise ConfigError(f"reducer {shown(name)} is not known; {nearest(name, known)}")
    return known[name]
