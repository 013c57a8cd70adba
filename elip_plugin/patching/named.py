"""Patched classes that are made from a host's class when they are needed, under its name."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

from elip_plugin.patching.swap import Patched


class NamedAsReplaced(Patched):
    """A patched class with the module and the names of the class that it replaces.

    They are written into files (`save_pretrained`, the adapters of peft), and code of the host goes
    by them: FSDP's wrapping policies, the choice of an attention implementation. Pickle, which
    would find the replaced class by them, is told how the patched one is made.
    """

    elip_made_from: ClassVar[tuple[Any, ...]] = ()
    """What `patched_class` was given; () for a class that is written out, which has a name."""

    @classmethod
    def body_for(cls, replaces: Any, *data: Any) -> dict[str, Any]:
        """Return further class attributes, which depend on the host's class and the data."""
        return {}

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle or copy by the replaced class."""
        reduced: Any = super().__reduce_ex__(protocol)
        return (_new, self.elip_made_from, *reduced[2:]) if self.elip_made_from else reduced


def _new(*made_from: Any) -> Any:
    """Make an empty object of a patched class."""
    patched = patched_class(*made_from)
    return patched.__new__(patched)


def patched_class(mixin: Any, replaces: Any, *data: Any) -> Any:
    """Make the patched class of a host's class.

    Args:
        mixin: What is added in front of the host's class.
        replaces: The host's class.
        *data: What the mixin's `body_for` takes besides; hashable.

    Returns:
        The class; the same one for the same arguments.
    """
    return _patched_class(mixin, replaces, *data)


@functools.cache
def _patched_class(mixin: Any, replaces: Any, *data: Any) -> Any:
    body = {**mixin.body_for(replaces, *data), "elip_made_from": (mixin, replaces, *data)}
    body |= {"replaces": replaces, "__doc__": replaces.__doc__}
    body |= {"__module__": replaces.__module__, "__qualname__": replaces.__qualname__}
    return type(replaces.__name__, (mixin, replaces), body)
