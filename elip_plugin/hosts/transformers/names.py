"""Names: `hf:FOLDER` for a local folder of `save_pretrained`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from elip_plugin.errors import DataError, UnknownModelError
from elip_plugin.hosts.base import ModelName

PREFIX = "hf:"

CONFIG_KEY = "elip"
"""Key of a saved model's config: what its vision tower was pruned by."""

BLIP_TYPES = ("blip", "blip-2", "instructblip")
"""Families of which each class of models has a default of its own."""

MODEL_TYPES = ("clip", "siglip", "metaclip_2", "altclip", "chinese_clip", *BLIP_TYPES)
"""Families that are built with their texts; as written in a folder's config.json."""


def find(name: str) -> ModelName | None:
    """Find a local folder with a config.json: `hf:FOLDER`; None for a model without known texts."""
    folder = name.removeprefix(PREFIX)
    if folder == name:
        return None
    if not (Path(folder) / "config.json").is_file():
        raise UnknownModelError(
            f"{folder!r} is no folder with a config.json (nothing is downloaded): give hf: and a "
            "folder of save_pretrained"
        )
    config = read_json(folder)
    if config["model_type"] not in MODEL_TYPES:
        return None  # see `hosts.anyvit`
    own = config.get(CONFIG_KEY) is not None or config["model_type"] in BLIP_TYPES
    return ModelName(name, "transformers", folder, own)


def read_json(folder: str) -> dict[str, Any]:
    """Read a folder's config.json, which names a model's type."""
    path = Path(folder) / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text())
        config["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no config of a transformers model: {error!r}") from error
    return config
