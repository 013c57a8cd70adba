"""What may reduce the tokens: ELIP, and published methods to compare it with, one file each.

Each is written from its paper. Those that take the presets' stages remove the same number of
token-layers from the same configuration, so that only the choice differs. Other packages add
theirs by the entry-point group `elip_plugin.reducers`, whose entries name a `Reducer` subclass.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from dataclasses import fields, replace
from importlib.metadata import entry_points
from typing import Any

from elip_plugin.core.select import Selection
from elip_plugin.core.stage import PlannedStage, block_macs
from elip_plugin.errors import ConfigError, nearest
from elip_plugin.reducers.base import Reducer, StageContext, option_faults
from elip_plugin.reducers.cluster import Cluster
from elip_plugin.reducers.elip import Elip
from elip_plugin.reducers.evit import EViT
from elip_plugin.reducers.gumbel import Gumbel
from elip_plugin.reducers.pool import Pool
from elip_plugin.reducers.random import Random
from elip_plugin.reducers.similarity import FOR_INSTRUCTIONS, FOR_QUESTIONS, Similarity
from elip_plugin.reducers.tome import ToMe
from elip_plugin.reducers.unique import Unique

GROUP = "elip_plugin.reducers"
OWN = (Elip, Gumbel, Similarity, EViT, Unique, ToMe, Random, Cluster, Pool)
DEFAULT_REDUCER = Elip.name

__all__ = [
    "DEFAULT_REDUCER",
    "FOR_INSTRUCTIONS",
    "FOR_QUESTIONS",
    "PlannedStage",
    "Reducer",
    "Selection",
    "StageContext",
    "block_macs",
    "find_reducer",
    "make_reducer",
    "option_defaults",
    "option_faults",
    "reducers",
]


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
        if not (isinstance(cls, type) and issubclass(cls, Reducer)):
            raise ConfigError(f"{entry.value} of the entry-point group {GROUP} is no Reducer")
        if cls.name in found:
            raise ConfigError(
                f"reducer {cls.name!r} of {entry.value} takes a name that "
                f"{type(found[cls.name]).__module__} has: give it another name"
            )
        found[cls.name] = cls()
    return found


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
        raise ConfigError(f"reducer {name!r} is not known; {nearest(name, known)}")
    return known[name]


@functools.lru_cache(maxsize=256)
def make_reducer(name: str, options: tuple[tuple[str, Any], ...]) -> Reducer:
    """Make a reducer with options, pairs of a name and a value, which have been checked."""
    return replace(find_reducer(name), **dict(options))


def option_defaults(name: str | None = None) -> Mapping[str, Any]:
    """List options and their defaults: those of one reducer, or of all."""
    asked = reducers().values() if name is None else [find_reducer(name)]
    return {option.name: option.default for each in asked for option in fields(each)}
