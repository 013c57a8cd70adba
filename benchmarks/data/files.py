"""Write and read the files of a data set, with their checksums."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "held_out")


class DataSetError(Exception):
    """A data set cannot be made or read; the message says what to do."""


def sha256(path: Path) -> str:
    """Compute the checksum of a file.

    Args:
        path: The file.

    Returns:
        Its SHA-256 in hexadecimal digits.
    """
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write(path: Path, content: bytes) -> None:
    """Write a file at once: it is never there half.

    Args:
        path: Where to.
        content: What.

    Raises:
        DataSetError: If it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        raise DataSetError(
            f"{path} cannot be written ({error}): free space, or name a folder you can write to."
        ) from error


def pack_json(content: Any) -> bytes:
    """Encode JSON that a person can read; lists of rows have one row a line.

    Args:
        content: What to encode.

    Returns:
        The bytes of the file.
    """
    if isinstance(content, list):
        rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in content)
        return f"[\n{rows}\n]\n".encode()
    return (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()


def pack_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Encode arrays as a compressed .npz file; equal arrays give equal bytes.

    Args:
        arrays: The arrays by their names.

    Returns:
        The bytes of the file.
    """
    file = io.BytesIO()
    np.savez_compressed(file, **dict(arrays))  # type: ignore[arg-type]
    return file.getvalue()


def check_folder(out: Path, known: Iterable[str]) -> None:
    """Check that a folder holds nothing but files of a data set.

    Args:
        out: The folder; it may be missing.
        known: Names of the files that may be replaced.

    Raises:
        DataSetError: If there are others.
    """
    if out.exists() and not out.is_dir():
        raise DataSetError(f"{out} is a file, but a folder is needed: pass another --out.")
    known = set(known)
    found = sorted(path.name for path in out.iterdir()) if out.exists() else []
    foreign = [name for name in found if name.removesuffix(".part") not in known]
    if foreign:
        raise DataSetError(
            f"{out} holds files of something else ({', '.join(foreign[:3])}); only {sorted(known)} "
            "would be replaced: name a new or empty folder by --out."
        )


def write_set(
    out: Path, manifest: str, files: Mapping[str, bytes], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Write a data set; its manifest comes last, so that a folder with one is complete.

    Args:
        out: The folder.
        manifest: Name of the manifest file.
        files: Contents of the other files by their names.
        about: What the manifest says beside the checksums.

    Returns:
        The manifest.
    """
    (out / manifest).unlink(missing_ok=True)
    for name, content in files.items():
        write(out / name, content)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    made = {**about, "files": sums}
    write(out / manifest, pack_json(made))
    return made


def read_manifest(folder: Path, manifest: str, command: str) -> dict[str, Any]:
    """Read the manifest of a data set and check its files.

    Args:
        folder: Where the data set is.
        manifest: Name of the manifest file.
        command: The command that makes the data set, for the error.

    Returns:
        The manifest.

    Raises:
        DataSetError: If the data set is missing, incomplete or changed.
    """
    again = f"run python -m benchmarks.data {command} --out {shlex.quote(str(folder))}"
    try:
        made: dict[str, Any] = json.loads((folder / manifest).read_text(encoding="utf-8"))
        sums = dict(made["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataSetError(f"{folder} holds no complete data set ({manifest}): {again}.") from error
    for name, digest in sums.items():
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            raise DataSetError(f"{folder / name} is missing or was changed: {again}.")
    return made


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read all arrays of a .npz file.

    Args:
        path: The file.

    Returns:
        The arrays by their names.
    """
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def check_split(split: str) -> None:
    """Check the name of a split.

    Args:
        split: The name.

    Raises:
        DataSetError: If there is no such split.
    """
    if split not in SPLITS:
        raise DataSetError(f"split is {split!r}, but must be one of {list(SPLITS)}.")
