"""Checks of a LAVIS run config before LAVIS reads it; its own errors are bare assertions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lavis.common.optims  # noqa: F401  (registers the schedules)
from lavis.common.registry import registry
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from elip_plugin.errors import ConfigError, join_faults, nearest

NAMES = {"task": "task", "runner": "runner", "lr_sched": "lr_scheduler"}
"""Keys of a run section that name something, and what LAVIS' registry calls it."""


def check_run_config(path: Path, options: Sequence[str]) -> None:
    """Check that a config and its overrides can be read, and that what it names is known.

    Raises a ConfigError with every fault at once.
    """
    values = _read(path, options)
    sections = ("model", "datasets", "run")
    missing = [name for name in sections if not isinstance(values.get(name), dict)]
    if missing:
        raise ConfigError(f"config {path}: sections {missing} are missing, of {list(sections)}")
    model, run = values["model"], values["run"]
    faults = _unknown("model.arch", model.get("arch"), "model")
    for name in values["datasets"]:
        faults += _unknown("datasets", name, "builder")
    for key, kind in NAMES.items():
        if run.get(key) is not None:
            faults += _unknown(f"run.{key}", run[key], kind)
    if faults:
        raise ConfigError(join_faults(f"config {path}", faults))


def _read(path: Path, options: Sequence[str]) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"config {str(path)!r} is no file; `elip lavis configs` lists ours")
    bad = [option for option in options if "=" not in option]
    if bad:
        raise ConfigError(f"options {bad} must be KEY=VALUE")
    try:
        config = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(list(options)))
        values: Any = OmegaConf.to_container(config, resolve=True)
    except (YAMLError, OmegaConfBaseException, OSError) as error:
        raise ConfigError(f"config {str(path)!r} cannot be read: {error}") from error
    return values if isinstance(values, dict) else {}


def _unknown(what: str, name: Any, kind: str) -> list[str]:
    names = list(registry.mapping[f"{kind}_name_mapping"])
    return [] if name in names else [f"{what} {name!r} is not known; {nearest(name, names)}"]
