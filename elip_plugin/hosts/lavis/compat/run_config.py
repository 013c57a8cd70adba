"""Checks of a LAVIS run config before LAVIS reads it; its own errors are bare assertions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lavis.common.optims  # noqa: F401  (registers the schedules)
from lavis.common.config import create_runner_config_validator
from lavis.common.registry import registry
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from elip_plugin.errors import ConfigError, join_faults, nearest
from elip_plugin.hosts.lavis.compat.settings import slips

SECTIONS = ("model", "datasets", "run")
NEEDED = ("task", "batch_size_train", "batch_size_eval", "num_workers", "device", "output_dir")
NEEDED_TO_TRAIN = ("max_epoch", "init_lr", "min_lr", "lr_sched", "weight_decay")
MORE_RUN_KEYS = (
    *("runner", "amp", "beta2", "log_freq", "resume_ckpt_path", "gpu", "rank", "dist_backend"),
    *("report_metric", "prompt"),
)
"""Keys that LAVIS reads from a run section but leaves out of its own list."""


def check_run_config(path: Path, options: Sequence[str], *, evaluate: bool) -> None:
    """Check that a config and its overrides can be read, and that each name and key is known.

    To evaluate only needs fewer keys. Raises a ConfigError with every fault at once.
    """
    faults = [f"option {o!r} must be KEY=VALUE" for o in options if "=" not in o]
    values = _read(path, options)
    for name in SECTIONS:
        if not isinstance(values.get(name), dict) or not values[name]:
            faults.append(f"section {name!r} is missing; a run config has {list(SECTIONS)}")
            values[name] = {}
    model, run = values["model"], values["run"]
    faults += _unknown("model.arch", model.get("arch"), "model")
    arch = registry.get_model_class(model.get("arch"))
    if arch is not None:
        types = arch.PRETRAINED_MODEL_CONFIG_DICT
        faults += _not_among("model.model_type", model.get("model_type"), types)
    for name in values["datasets"]:
        faults += _unknown("datasets", name, "builder")
    for key, kind in {"task": "task", "runner": "runner", "lr_sched": "lr_scheduler"}.items():
        if run.get(key) is not None and not (evaluate and key == "lr_sched"):
            faults += _unknown(f"run.{key}", run[key], kind)
    missing = [k for k in NEEDED + (() if evaluate else NEEDED_TO_TRAIN) if run.get(k) is None]
    faults += [f"run: {missing} missing"] if run and missing else []
    known = [*create_runner_config_validator().arguments, *MORE_RUN_KEYS]
    faults += [f"run: {slip}" for slip in slips(run, known)]
    if run and run.get("train_splits") is None and not evaluate:
        faults.append('run: train_splits is missing: set train_splits: ["train"]')
    if faults:
        raise ConfigError(join_faults(f"config {path}", faults))


def _read(path: Path, options: Sequence[str]) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"config {str(path)!r} is no file; `elip lavis configs` lists ours")
    try:
        config = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(list(options)))
        values: Any = OmegaConf.to_container(config, resolve=True)
    except (YAMLError, OmegaConfBaseException, OSError) as error:
        raise ConfigError(f"config {str(path)!r} cannot be read: {error}") from error
    return values if isinstance(values, dict) else {}


def _unknown(what: str, name: Any, kind: str) -> list[str]:
    return _not_among(what, name, registry.mapping[f"{kind}_name_mapping"])


def _not_among(what: str, name: Any, known: Iterable[str]) -> list[str]:
    names = list(known)
    return [] if name in names else [f"{what} {name!r} is not known; {nearest(name, names)}"]
