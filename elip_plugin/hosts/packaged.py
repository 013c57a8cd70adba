"""Hosts as packages wrote them for version 0.2: one class, whose functions lie in named files."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

from elip_plugin.errors import ElipDeprecationWarning

FUNCTIONS = {
    "register": ("names", "register"),
    "names": ("names", "list_names"),
    "find": ("names", "find"),
    "describe": ("models", "describe"),
    "text_guide": ("guide", "text_guide"),
    "create": ("factory", "create"),
}
"""File and function of a host's package, by the method that calls it."""


def complete(host: type, find: Callable[..., Any]) -> None:
    """Give a host's class the methods that it left to files of its `package`.

    Args:
        host: The class.
        find: How a catalogue finds a name where the host does not say it.
    """
    package = getattr(host, "package", "")
    for method, place in FUNCTIONS.items() if package else ():
        if getattr(getattr(host, method, None), "__isabstractmethod__", True):
            setattr(host, method, _from_file(package, *place, find if method == "find" else None))
    if package:
        warnings.warn(
            f"{host.__name__}.package: write the host's methods in its class, with imports inside "
            "them (docs/writing_a_host.md)",
            ElipDeprecationWarning,
            stacklevel=4,
        )
    if hasattr(host, "names") and not hasattr(host, "find"):
        setattr(host, "find", find)  # noqa: B010  # a class of unknown type


def _from_file(package: str, file: str, name: str, otherwise: Any) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **options: Any) -> Any:
        function = getattr(importlib.import_module(f"{package}.{file}"), name, None)
        if function is None:
            return otherwise(self, *args, **options)
        return function(*args, **options)

    return method
