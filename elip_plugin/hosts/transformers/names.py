"""Names: `hf:FOLDER` for a local folder of `save_pretrained`."""

from __future__ import annotations

from pathlib import Path

from elip_plugin.errors import UnknownModelError
from elip_plugin.hosts.base import ModelName
from elip_plugin.hosts.transformers import folders

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
    config = folders.config_of(folder)
    if config.model_type not in MODEL_TYPES:
        return None  # see `hosts.anyvit`
    own = getattr(config, CONFIG_KEY, None) is not None or config.model_type in BLIP_TYPES
    return ModelName(name, "transformers", folder, own)
