"""Names: `hf:X` for well-known models and for any local folder."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from torch import nn

from elip_plugin.config import RECOMMENDED
from elip_plugin.errors import UnknownModelError, nearest
from elip_plugin.hosts.base import FROM_CONFIG, ModelName
from elip_plugin.hosts.transformers.shapes import (
    BLIP_TYPES,
    CONFIG_KEY,
    MODEL_TYPES,
    PREFIX,
    SHAPES,
    read_json,
)


@functools.cache
def list_names() -> dict[str, ModelName]:
    """List the models of the table by name."""
    return {PREFIX + base: _name(base, shape.model_type) for base, shape in SHAPES.items()}


def _name(base: str, model_type: str, saved: bool = False) -> ModelName:
    preset = FROM_CONFIG if saved or model_type in BLIP_TYPES else RECOMMENDED
    return ModelName(PREFIX + base, "transformers", base, preset, build)


def build(name: str, **options: Any) -> nn.Module:
    """Build a pruned model by name; see `Host.create`."""
    from elip_plugin.hosts.transformers.factory import create

    return create(name, **options).model


def find(name: str) -> ModelName | None:
    """Find a model by name or base, or a local folder with a config.json: `hf:PATH`."""
    base = name.removeprefix(PREFIX)
    known = list_names()
    if PREFIX + base in known:
        return known[PREFIX + base]
    if base == name:
        return None
    if not (Path(base) / "config.json").is_file():
        raise UnknownModelError(
            f"{name!r} is neither a known model nor a folder with a config.json (nothing is "
            f"downloaded); {nearest(name, known)}"
        )
    config = read_json(base)
    if config["model_type"] not in MODEL_TYPES:
        return None  # without texts of its own that are known here: see `hosts.anyvit`
    return _name(base, config["model_type"], saved=config.get(CONFIG_KEY) is not None)
