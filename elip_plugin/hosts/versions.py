"""Versions of installed packages, read without an import."""

from __future__ import annotations

import re
from importlib import metadata


def installed_version(distribution: str) -> tuple[int, ...]:
    """Return the first two numbers of an installed version; () if the package is not installed."""
    try:
        version = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ()
    return tuple(map(int, re.findall(r"\d+", version)[:2]))
