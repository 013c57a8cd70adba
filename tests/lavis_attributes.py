"""What LAVIS' modules and classes hold, to compare by identity."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from typing import Any


def import_all() -> None:
    """Import every module of LAVIS that can be imported."""
    import lavis

    for found in pkgutil.walk_packages(lavis.__path__, "lavis."):
        try:
            importlib.import_module(found.name)
        except Exception:  # of an optional dependency
            continue


def attributes() -> dict[tuple[str, str], Any]:
    """All attributes of LAVIS' imported modules and of their classes."""
    found: dict[tuple[str, str], Any] = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] != "lavis":
            continue
        found.update({(name, key): value for key, value in vars(module).items()})
        classes = {value for value in vars(module).values() if inspect.isclass(value)}
        for cls in (cls for cls in classes if cls.__module__.startswith("lavis")):
            where = f"{cls.__module__}.{cls.__qualname__}"
            found.update({(where, key): value for key, value in vars(cls).items()})
    return found


def changes(before: dict[tuple[str, str], Any]) -> list[tuple[str, str]]:
    """The attributes that are other objects than before."""
    now = attributes()
    # What Python keeps there by itself may be made anew.
    changed = {k for k in {**before, **now} if before.get(k) is not now.get(k)}
    return sorted(k for k in changed if k[1] not in ("_abc_impl", "__warningregistry__"))
