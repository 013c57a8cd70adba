"""A configuration in a file of JSON or YAML."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elip_plugin.errors import ConfigError

MOST_VALUES = 100_000
"""Values of a YAML file at most, those of an alias counted each time that it is used."""

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
        values = json.loads(text) if path.endswith(".json") else _read_yaml(text)
    except ImportError as error:
        raise ConfigError(f"{path}: to read YAML, run: pip install pyyaml") from error
    except Exception as error:  # of the file system, json and yaml
        raise ConfigError(f"the ELIP config {path!r} cannot be read: {error}") from error
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} holds {type(values).__name__}, but an ELIP config is a mapping")
    return values.get("elip", values)


def _read_yaml(text: str) -> Any:
    """Read YAML; refuse text whose aliases stand for more values than a configuration has."""
    import yaml  # comes with every host

    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if _count_values(node, {}) > MOST_VALUES:
        raise ValueError(f"its aliases stand for more than {MOST_VALUES} values")
    return None if node is None else yaml.SafeLoader("").construct_document(node)


def _count_values(node: Any, counted: dict[int, float]) -> float:
    """Count the values below a node of YAML, those of an alias each time that it stands there."""
    if id(node) not in counted:
        counted[id(node)] = math.inf  # until it is counted: a node that holds itself
        inner = getattr(node, "value", ())
        parts = [] if isinstance(inner, str) else inner
        values = (part for pair in parts for part in (pair if isinstance(pair, tuple) else [pair]))
        counted[id(node)] = 1 + sum(_count_values(value, counted) for value in values)
    return counted[id(node)]
