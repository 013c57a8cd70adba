"""A configuration in a file of JSON or YAML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elip_plugin.errors import ConfigError

FILES = (".json", ".yaml", ".yml")
"""Ends of a string that names a file, not a preset."""


def read_file(path: str) -> Any:
    """Read the config in a file: its `elip` section, or all of it.

    Args:
        path: A file whose name ends as one of `FILES`.

    Returns:
        The mapping.

    Raises:
        ConfigError: If the file cannot be read, or holds no mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        if path.endswith(".json"):
            values = json.loads(text)
        else:
            import yaml  # comes with every host

            values = yaml.safe_load(text)
    except ImportError as error:
        raise ConfigError(f"{path}: to read YAML, run: pip install pyyaml") from error
    except Exception as error:  # of the file system, json and yaml
        raise ConfigError(f"the ELIP config {path!r} cannot be read: {error}") from error
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} holds {type(values).__name__}, but an ELIP config is a mapping")
    return values.get("elip", values)
