"""`elip doctor`: what is installed here, what does not fit, and the command that mends it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from elip_plugin.hosts import autoload
from elip_plugin.hosts.registry import HOSTS

OLDEST_TORCH = (2, 4)
OLDEST = {"open_clip": (2, 32), "lavis": (1, 0)}


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        about: What was looked at.
        text: What was found.
        mend: What to do about it; "" if all is well.
    """

    about: str
    text: str
    mend: str = ""


def examine() -> list[Finding]:
    """Look at this environment; each host is imported in a process of its own.

    Returns:
        The findings.
    """
    return [*_python(), *_torch(), *_autoload(), *_hosts()]


def _python() -> Iterator[Finding]:
    yield Finding("Python", f"{platform.python_version()} at {sys.prefix}")


def _torch() -> Iterator[Finding]:
    found = _version("torch")
    if found is None:
        yield Finding("torch", "not installed", "pip install 'torch>=2.4'")
        return
    old = _numbers(found) < OLDEST_TORCH
    yield Finding("torch", found, "pip install -U 'torch>=2.4'" if old else "")
    import torch

    seen = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if seen else "none seen; training runs on the CPU"
    yield Finding("GPU", name)


def _autoload() -> Iterator[Finding]:
    if os.environ.get(autoload.SWITCH) == "0":
        text = f"off, by {autoload.SWITCH}=0: hosts' own commands do not know elip models"
        yield Finding("autoload", text, f"unset {autoload.SWITCH}")
        return
    file = Path(sysconfig.get_paths()["purelib"]) / autoload.START_FILE
    if not file.is_file():
        text = f"off: {autoload.START_FILE} is not among the installed packages"
        yield Finding("autoload", text, "pip install --force-reinstall --no-deps elip-plugin")
        return
    missing = [name for name in autoload.HOSTS if f"'{name}'" not in file.read_text()]
    mend = "pip install --force-reinstall --no-deps elip-plugin" if missing else ""
    yield Finding("autoload", f"on, from {file}" + (f", without {missing}" * bool(missing)), mend)


def _hosts() -> Iterator[Finding]:
    for name, entry in HOSTS.items():
        install = f"pip install 'elip-plugin[{entry.extra}]'"
        found = _version(entry.distribution)
        if found is None:
            yield Finding(name, "not installed (only needed if you use it)")
            continue
        if _numbers(found) < OLDEST[name]:
            yield Finding(name, f"{found} is too old", install)
            continue
        fault = _import_fault(entry.module)
        if fault is None:
            yield Finding(name, found)
        else:
            yield Finding(name, f"{found} does not import: {fault}", _mend_import(name, install))


def _import_fault(module: str) -> str | None:
    """Import a host elsewhere, so that a crash of it is only a finding."""
    command = [sys.executable, "-W", "ignore", "-c", f"import {module}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"


def _mend_import(name: str, install: str) -> str:
    if name == "lavis" and _numbers(_version("transformers") or "0") >= (5,):
        return "pip install 'transformers<5'"
    if name == "lavis" and _numbers(_version("timm") or "0") < (1,):
        return "pip install 'numpy<2'"  # the opencv that LAVIS pins needs it
    return install


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.partition("+")[0].split(".")[:2]
    return tuple(int(part) for part in parts if part.isdigit())
