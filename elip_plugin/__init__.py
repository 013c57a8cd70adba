"""ELIP: language-image pre-training with fewer vision tokens (arXiv 2309.16738).

Importing the package imports neither torch nor a host: public names load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from elip_plugin.hosts import autoload as _autoload

if TYPE_CHECKING:
    from elip_plugin.adapting import adapt
    from elip_plugin.api import Handle, apply, find_handle
    from elip_plugin.check.embed import embed
    from elip_plugin.config import ElipConfig, Stage
    from elip_plugin.errors import ElipError
    from elip_plugin.hosts.anyvit.describe import describe
    from elip_plugin.hosts.base import HostModel
    from elip_plugin.hosts.registry import create, list_models
    from elip_plugin.hosts.transformers.trainer import TrainerCallback as TrainerCallback
    from elip_plugin.patching.parts import Parts
    from elip_plugin.planning import Plan, plan
    from elip_plugin.reducers import register_reducer

__version__ = "1.0.0"

_MODULES = {
    "adapting": ("adapt",),
    "check.embed": ("embed",),
    "api": ("Handle", "apply", "find_handle"),
    "config": ("ElipConfig", "Stage"),
    "errors": ("ElipError",),
    "hosts.anyvit.describe": ("describe",),
    "hosts.base": ("HostModel",),
    "hosts.registry": ("create", "list_models"),
    "hosts.transformers.trainer": ("TrainerCallback",),
    "patching.parts": ("Parts",),
    "planning": ("Plan", "plan"),
    "reducers": ("register_reducer",),
}

# Without TrainerCallback: `import *` works where transformers is not installed.
__all__ = [
    "ElipConfig",
    "ElipError",
    "Handle",
    "HostModel",
    "Parts",
    "Plan",
    "Stage",
    "adapt",
    "apply",
    "create",
    "describe",
    "embed",
    "find_handle",
    "list_models",
    "plan",
    "register_reducer",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its module."""
    module = next((module for module, names in _MODULES.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module 'elip_plugin' has no attribute {name!r}")
    value = getattr(import_module(f"elip_plugin.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return sorted({*globals(), *__all__})


_autoload.main()
