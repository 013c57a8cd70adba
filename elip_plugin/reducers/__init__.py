"""What may reduce the tokens: ELIP, and published methods to compare it with, one file each.

Each is written from its paper. Those that take the presets' stages remove the same number of
token-layers from the same configuration, so that only the choice differs. Other packages add
theirs by the entry-point group `elip_plugin.reducers`, whose entries name a `Reducer` subclass.
"""

from __future__ import annotations

import functools
from importlib.metadata import entry_points

from elip_plugin.core.select import Selection
from elip_plugin.errors import ConfigError, nearest
from elip_plugin.reducers.base import PlannedStage, Reducer, StageContext, block_cost
from elip_plugin.reducers.cluster import Cluster
from elip_plugin.reducers.elip import Elip
from elip_plugin.reducers.evit import EViT
from elip_plugin.reducers.gumbel import Gumbel
from elip_plugin.reducers.pool import Pool
from elip_plugin.reducers.random import Random
from elip_plugin.reducers.similarity import Similarity
from elip_plugin.reducers.tome import ToMe
from elip_plugin.reducers.unique import Unique

GROUP = "elip_plugin.reducers"
OWN = (Elip, Gumbel, Similarity, EViT, Unique, ToMe, Random, Cluster, Pool)

__all__ = [
    "PlannedStage",
    "Reducer",
    "Selection",
    "StageContext",
    "block_cost",
    "find_reducer",
    "reducers",
]


@functools.cache
def reducers() -> dict[str, Reducer]:
    """List the reducers of this package and of installed ones.

    Returns:
        Reducers by name.

    Raises:
        ConfigError: If an entry is no reducer, or takes a name that is taken.
    """
    found: dict[str, Reducer] = {cls.name: cls() for cls in OWN}
    for entry in entry_points(group=GROUP):
        cls = entry.load()
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
        The reducer.

    Raises:
        ConfigError: If there is none of that name.
    """
    known = reducers()
    if not isinstance(name, str) or name not in known:
        raise ConfigError(f"reducer {name!r} is not known; {nearest(name, known)}")
    return known[name]
