"""A package of somebody else that extends this one by entry points, and the command `elip`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from elip_plugin.cli.main import app
from elip_plugin.hosts import registry
from elip_plugin.reducers import reducers


@contextmanager
def installed_package(folder: Path, name: str, group: str, place: str) -> Iterator[None]:
    """Write a package's metadata with one entry point into a folder, and import from there."""
    info = folder / f"{name}-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {place}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        for listed in (registry.hosts, reducers):
            listed.cache_clear()
        try:
            yield
        finally:
            for listed in (registry.hosts, reducers):
                listed.cache_clear()


def elip(command: str) -> str:
    """Run the command `elip`, and return what it printed in one line."""
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 0, result.exception
    return " ".join(result.output.split())
