"""`manifest.json`: what lies beside an exported tower, by which it is checked when it is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elip_plugin.errors import DataError

NAME = "manifest.json"
VERSION = 1
KEYS = ("manifest", "format", "model", "towers", "files", "image_size", "elip")
"""Keys that a manifest has."""


def hash_weights(state: Mapping[str, Tensor]) -> str:
    """Compute the SHA-256 of tensors: names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for part in iter(lambda: file.read(1 << 20), b""):
            digest.update(part)
    return digest.hexdigest()


def write_manifest(folder: Path, values: Mapping[str, Any]) -> None:
    """Write a manifest: what is given, and the hash of each file in the folder."""
    files = {path.name: hash_file(path) for path in sorted(folder.iterdir())}
    manifest = {"manifest": VERSION, **values, "files": files}
    (folder / NAME).write_text(json.dumps(manifest, indent=1) + "\n")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a manifest; raises a DataError if a file that it names is missing or was changed."""
    path = folder / NAME
    again = "export the model again, by elip export"
    if not path.is_file():
        raise DataError(f"{folder} has no {NAME}: name a folder that elip export wrote")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error}): {again}") from error
    if (
        not isinstance(values, dict)
        or values.get("manifest") != VERSION
        or {*KEYS} - {*values}
        or not isinstance(values["files"], dict)
    ):
        raise DataError(f"{path} is no manifest of version {VERSION} with {KEYS}: {again}")
    for name, digest in values["files"].items():
        if not (folder / name).is_file():
            raise DataError(f"{folder / name} is missing, which {NAME} names: {again}")
        if hash_file(folder / name) != digest:
            raise DataError(
                f"{folder / name} is damaged: it is not the file that {NAME} describes; {again}"
            )
    return values
