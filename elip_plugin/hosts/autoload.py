"""Act when somebody imports a host: prepare its libraries before, register after. Stdlib only.

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
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

SWITCH = "ELIP_AUTOLOAD"
"""Environment variable: with 0, neither start-up nor importing this package registers."""

START_FILE = "elip.pth"
"""The start-up file, among the installed packages."""

STAND_IN = "Elip"
"""Name of the finder class in `elip.pth`."""

HOSTS = {
    "open_clip": "elip_plugin.hosts.open_clip:HOST",
    "lavis": "elip_plugin.hosts.lavis:HOST",
    "transformers": "elip_plugin.hosts.transformers:HOST",
    "torch": "elip_plugin.hosts.anyvit:HOST",
}
"""Our own hosts by their top-level module: the one list, which the entry points repeat."""

AT_IMPORT = ("open_clip", "lavis")
"""Modules of hosts that are registered once they are imported; `elip.pth` names these, too.

The others have no names of their own that an unmodified command could ask for."""

HOOKS = {"open_clip_train.scheduler": "elip_plugin.hosts.open_clip.schedulers"}
"""Our modules that are told (`install(module)`) when another module of a host is imported."""


class PostImportFinder(MetaPathFinder):
    """Lets the other finders find a host, and adds a step before and after its loading."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a host's spec through the other finders, and extend its loader; None for others."""
        if fullname not in AT_IMPORT and fullname not in HOOKS:
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
        _guarded(fullname, "prepare the libraries of", "which may fail to import", _prepare)
        original(module)
        _guarded(fullname, "register with", "so its elip models are missing", _register)

    loader.exec_module = exec_module


def _prepare(module: str) -> None:
    if module in HOSTS:
        resolve_name(HOSTS[module]).prepare()


def _register(module: str) -> None:
    if module in HOOKS:
        importlib.import_module(HOOKS[module]).install(sys.modules[module])
    else:
        host = resolve_name(HOSTS[module])
        host.check_versions()
        host.register()


def _guarded(module: str, action: str, effect: str, do: Callable[[str], None]) -> None:
    """Do something about a host's import, which a failure here must not break."""
    try:
        do(module)
    except Exception as error:
        warnings.warn(
            f"elip_plugin could not {action} {module}, {effect}: "
            f"{type(error).__name__}: {error} (set {SWITCH}=0 to turn this off)",
            stacklevel=2,
        )


def install() -> None:
    """Prepare and register the hosts that are imported, and each other one once it is."""
    # A venv runs the line twice and may have two stand-ins. Asked for a host by the real finder
    # they would ask it again, so they go.
    sys.meta_path[:] = [f for f in sys.meta_path if getattr(f, "__name__", "") != STAND_IN]
    if not any(isinstance(finder, PostImportFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, PostImportFinder())
        for module in AT_IMPORT:
            # A host that is still being imported has no spec loaded to the end yet.
            spec = getattr(sys.modules.get(module), "__spec__", None)
            if spec is not None and not getattr(spec, "_initializing", False):
                # Late, but what only its models use is in time.
                _guarded(module, "prepare the libraries of", "which may fail to import", _prepare)
                _guarded(module, "register with", "so its elip models are missing", _register)


def first_import(
    fullname: str, path: Sequence[str] | None, target: ModuleType | None
) -> ModuleSpec | None:
    """Take over from the stand-in finder of `elip.pth` when a host is imported."""
    if os.environ.get(SWITCH) == "0":
        return None
    install()
    finder = next(f for f in sys.meta_path if isinstance(f, PostImportFinder))
    return finder.find_spec(fullname, path, target)


def main() -> None:
    """Install unless switched off; runs at interpreter start and when the package is imported."""
    if os.environ.get(SWITCH) != "0":
        install()
