"""ELIP: language-image pre-training with fewer vision tokens (arXiv 2309.16738).

Importing the package imports neither torch nor a host: public names load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from elip_plugin.hosts import autoload as _autoload

if TYPE_CHECKING:
    from elip_plugin.api import Handle, apply, find_handle, guide
    from elip_plugin.config import ElipConfig, Stage
    from elip_plugin.errors import ElipError
    from elip_plugin.hosts.registry import Variant, get, list_models
    from elip_plugin.planning import Plan, plan

__version__ = "0.1.0"

_HOMES = {
    "ElipConfig": "config",
    "ElipError": "errors",
    "Handle": "api",
    "Plan": "planning",
    "Stage": "config",
    "Variant": "hosts.registry",
    "apply": "api",
    "find_handle": "api",
    "get": "hosts.registry",
    "guide": "api",
    "list_models": "hosts.registry",
    "plan": "planning",
}

__all__ = [
    "ElipConfig",
    "ElipError",
    "Handle",
    "Plan",
    "Stage",
    "Variant",
    "apply",
    "find_handle",
    "get",
    "guide",
    "list_models",
    "plan",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module 'elip_plugin' has no attribute {name!r}")
    value = getattr(import_module(f"elip_plugin.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return sorted({*globals(), *__all__})


_autoload.main()
