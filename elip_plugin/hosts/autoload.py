"""Step in when somebody imports a host: mend its libraries before, register after. Stdlib only.

So that unmodified commands of the hosts know our models, `elip.pth` puts a stand-in finder of
a few lines in place at interpreter start; it calls `first_import` when somebody imports a
host, and until then nothing of this package is loaded. From Python 3.15 on, `elip.start`
calls `main` instead.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

SWITCH = "ELIP_AUTOLOAD"
"""Environment variable: with 0, neither start-up nor importing this package registers."""

START_FILE = "elip.pth"
"""The start-up file, among the installed packages."""

STAND_IN = "Elip"
"""Name of the finder class in `elip.pth`."""

HOSTS = {
    "open_clip": "elip_plugin.hosts.open_clip.names",
    "lavis": "elip_plugin.hosts.lavis.names",
}
"""Our module for each host that gets registered after its import; `elip.pth` names them, too."""

PREPARE = {"lavis": "elip_plugin.hosts.lavis_libraries"}
"""Our module for each host whose libraries need a mend before its import; imports no host."""


class PostImportFinder(MetaPathFinder):
    """Lets the other finders find a host, and adds a step before and after its loading."""

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
                _add_steps(spec.loader, fullname)
                return spec
        return None


def _add_steps(loader: Any, fullname: str) -> None:
    original: Callable[[ModuleType], None] = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        loader.exec_module = original
        prepare(fullname)
        original(module)
        register(fullname)

    loader.exec_module = exec_module


def prepare(module: str) -> None:
    """Prepare a host's libraries for its import, which a failure here must not break.

    Args:
        module: A key of `HOSTS`; one that is not in `PREPARE` needs nothing.
    """
    if module not in PREPARE:
        return
    try:
        importlib.import_module(PREPARE[module]).prepare()
    except Exception as error:
        warnings.warn(
            f"elip_plugin could not prepare the libraries of {module}, which may fail to import: "
            f"{type(error).__name__}: {error} (set {SWITCH}=0 to turn this off)",
            stacklevel=2,
        )


def register(module: str) -> None:
    """Register with an imported host; a failure must not break somebody's import of it.

    Args:
        module: A key of `HOSTS`, already imported.
    """
    try:
        importlib.import_module(HOSTS[module]).register()
    except Exception as error:
        warnings.warn(
            f"elip_plugin could not register with {module}, so its elip models are missing: "
            f"{type(error).__name__}: {error} (set {SWITCH}=0 to turn this off)",
            stacklevel=2,
        )


def install() -> None:
    """Prepare and register the hosts that are imported, and each other one once it is.

    Safe to repeat: a venv may run a .pth line twice.
    """
    # A venv runs the line twice and may have two stand-ins. Asked for a host by the real finder
    # they would ask it again, so they go.
    sys.meta_path[:] = [f for f in sys.meta_path if getattr(f, "__name__", "") != STAND_IN]
    if not any(isinstance(finder, PostImportFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, PostImportFinder())
        for module in HOSTS:
            # A host that is still being imported has no spec loaded to the end yet.
            spec = getattr(sys.modules.get(module), "__spec__", None)
            if spec is not None and not getattr(spec, "_initializing", False):
                prepare(module)  # late, but what only its models use is in time
                register(module)


def first_import(
    fullname: str, path: Sequence[str] | None, target: ModuleType | None
) -> ModuleSpec | None:
    """Take over from the stand-in finder of `elip.pth` when a host is imported.

    Args:
        fullname: The host.
        path: As for a finder.
        target: As for a finder.

    Returns:
        The host's spec; None to let the other finders find it, if switched off.
    """
    if os.environ.get(SWITCH) == "0":
        return None
    install()
    finder = next(f for f in sys.meta_path if isinstance(f, PostImportFinder))
    return finder.find_spec(fullname, path, target)


def main() -> None:
    """Install unless switched off; runs at interpreter start and when the package is imported."""
    if os.environ.get(SWITCH) != "0":
        install()
