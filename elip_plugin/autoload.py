"""Register with a host right after somebody imports it. Standard library only.

`elip.pth` (and `elip.start`, from Python 3.15 on) call `main` at interpreter start, so that
unmodified commands of the hosts know our models. Nothing is imported until a host is.
"""

from __future__ import annotations

import os
import sys

# Every Python process of the environment pays for what is imported here, so that is next
# to nothing: `typing` alone would cost more than the rest.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

SWITCH = "ELIP_AUTOLOAD"
"""Environment variable: with 0, neither start-up nor importing this package registers."""

HOSTS = {"open_clip": "elip_plugin.hosts.open_clip.register"}
"""Our module for each host module that gets registered after its import."""


class PostImportFinder:
    """Lets the other finders find a host, and adds a step after its loading."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a host's spec through the other finders.

        Args:
            fullname: The module that is being imported.
            path: Where to look, for submodules.
            target: The module being reloaded, if any.

        Returns:
            The spec with its loader extended; None for all other modules.
        """
        if fullname not in HOSTS:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            if find is None or finder is self:
                continue
            spec: ModuleSpec | None = find(fullname, path, target)
            if spec is not None and spec.loader is not None:
                _register_after(spec.loader, fullname)
                return spec
        return None


def _register_after(loader: Any, fullname: str) -> None:
    original: Callable[[ModuleType], None] = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        loader.exec_module = original
        original(module)
        register(fullname)

    loader.exec_module = exec_module


def register(module: str) -> None:
    """Register with an imported host; a failure must not break somebody's import of it.

    Args:
        module: A key of `HOSTS`, already imported.
    """
    import importlib
    import warnings

    try:
        importlib.import_module(HOSTS[module]).register()
    except Exception as error:
        warnings.warn(
            f"elip_plugin could not register with {module}, so its elip models are missing: "
            f"{type(error).__name__}: {error} (set {SWITCH}=0 to turn this off)",
            stacklevel=2,
        )


def install() -> None:
    """Register with the hosts that are imported, and with each other one once it is.

    Safe to repeat: a venv may run a .pth line twice.
    """
    if not any(isinstance(finder, PostImportFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, PostImportFinder())
        for module in HOSTS:
            # A host that is still being imported has no spec loaded to the end yet.
            spec = getattr(sys.modules.get(module), "__spec__", None)
            if spec is not None and not getattr(spec, "_initializing", False):
                register(module)


def main() -> None:
    """Install unless switched off; runs at interpreter start and when the package is imported."""
    if os.environ.get(SWITCH) != "0":
        install()
