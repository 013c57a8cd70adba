"""Parts of a host that are loaded when first asked for."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def late(package: str, **homes: str) -> Callable[[str], Any]:
    """Make a package's `__getattr__`: what only measuring and showing need is loaded late.

    Args:
        package: The package's name.
        **homes: The module of each late attribute, by the attribute's name.

    Returns:
        The function.
    """

    def __getattr__(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return __getattr__
