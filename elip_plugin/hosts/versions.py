"""Versions of installed packages, read without an import."""

from __future__ import annotations

import re
from importlib import metadata


def version_of(distribution: str) -> str:
    """Return an installed distribution's version; "" if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def installed_version(distribution: str) -> tuple[int, ...]:
    """Return the first two numbers of an installed version; () if the package is not installed."""
    return tuple(map(int, re.findall(r"\d+", version_of(distribution))[:2]))
