"""Checks of a LAVIS run config before LAVIS reads it; its own errors are bare assertions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lavis.common.config import create_runner_config_validator
from lavis.common.registry import registry
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from elip_plugin.errors import ConfigError, join_faults, nearest
from elip_plugin.hosts.lavis.compat.settings import is_misspelt

SECTIONS = ("model", "datasets", "run")
NEEDED = ("task", "batch_size_train", "batch_size_eval", "num_workers", "device", "output_dir")
NEEDED_TO_TRAIN = ("max_epoch", "init_lr", "min_lr", "lr_sched", "weight_decay")
MORE_RUN_KEYS = (
    *("runner", "amp", "beta2", "log_freq", "resume_ckpt_path", "gpu", "rank", "dist_backend"),
    *("report_metric", "prompt"),
)
"""Keys that LAVIS reads from a run section but leaves out of its own list."""


def read_run_config(path: Path, options: Sequence[str]) -> None:
    """Check that a config and its overrides can be read and name what exists."""
    if not path.is_file():
        raise ConfigError(f"config {str(path)!r} is no file; `elip lavis configs` lists ours")
    try:
        config = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(list(options)))
        values: Any = OmegaConf.to_container(config, resolve=True)
    except (YAMLError, OmegaConfBaseException, OSError) as error:
        raise ConfigError(f"config {str(path)!r} cannot be read: {error}") from error
    faults = [f"option {o!r} must be KEY=VALUE" for o in options if "=" not in o]
    values = values if isinstance(values, dict) else {}
    for name in SECTIONS:
        if not isinstance(values.get(name), dict) or not values[name]:
            faults.append(f"section {name!r} is missing; a run config has {list(SECTIONS)}")
            values[name] = {}
    mapping = registry.mapping
    arch = values["model"].get("arch")
    faults += _unknown("model.arch", arch, mapping["model_name_mapping"])
    model = registry.get_model_class(arch)
    if model is not None:
        types = model.PRETRAINED_MODEL_CONFIG_DICT
        faults += _unknown("model.model_type", values["model"].get("model_type"), types)
    for name in values["datasets"]:
        faults += _unknown("datasets", name, mapping["builder_name_mapping"])
    if "task" in values["run"]:
        faults += _unknown("run.task", values["run"]["task"], mapping["task_name_mapping"])
    runner = values["run"].get("runner")
    if runner is not None:
        faults += _unknown("run.runner", runner, mapping["runner_name_mapping"])
    if faults:
        raise ConfigError(join_faults(f"config {path}", faults))


def check_run_config(cfg: Any) -> None:
    """Check the run section of a `lavis.common.config.Config`."""
    run = cfg.run_cfg
    needed = NEEDED if run.evaluate else NEEDED + NEEDED_TO_TRAIN
    missing = [key for key in needed if run.get(key) is None]
    faults = [f"run: {missing} missing"] if missing else []
    known = [*create_runner_config_validator().arguments, *MORE_RUN_KEYS]
    faults += [
        f"run: key {key!r} is not known: {nearest(key, known)}"
        for key in map(str, run)
        if key not in known and is_misspelt(key, known)
    ]
    schedule = run.get("lr_sched")
    if schedule is not None and not run.evaluate:
        faults += _unknown("run.lr_sched", schedule, registry.list_lr_schedulers())
    if run.get("train_splits") is None and not run.evaluate:
        faults.append('run: train_splits is missing: set train_splits: ["train"]')
    if faults:
        raise ConfigError(join_faults("the run config", faults))


def _unknown(what: str, name: Any, known: Iterable[str]) -> list[str]:
    names = list(known)
    return [] if name in names else [f"{what} {name!r} is not known; {nearest(name, names)}"]
