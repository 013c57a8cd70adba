"""Names: makes `elip-X` resolve wherever OpenCLIP resolves X, and builds what they name."""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, NoReturn

import open_clip
from open_clip import factory, pretrained

from elip_plugin.config import PAPER, PRESETS, ElipConfig
from elip_plugin.errors import (
    DataError,
    ElipError,
    UnknownModelError,
    UnsupportedModelError,
    nearest,
)
from elip_plugin.hosts.base import ModelName
from elip_plugin.hosts.building import say_recommended
from elip_plugin.hosts.open_clip import models, schedulers
from elip_plugin.hosts.open_clip.support import SUPPORTED, why_not
from elip_plugin.patching.install import install

PREFIXES = {
    **{f"elip-{name}-": name for name in PRESETS if name != PAPER},
    "elip-": PAPER,
}
"""Presets by the prefix that asks for them; the one that others begin with comes last."""

CONFIG_KEY = "elip"
"""Top-level key of a model config that turns pruning on."""

CONFIGS_VARIABLE = "ELIP_MODEL_CONFIGS"
"""Environment variable: a folder (or file) of model configs, seen by unmodified commands."""

MODEL_CLASSES = ("CLIP", "CustomTextCLIP", "CoCa")
"""Globals of `open_clip.factory` through which every model is built."""

log = logging.getLogger("elip_plugin")


def list_names() -> dict[str, ModelName]:
    """List the pruned models by name."""
    return {
        name: ModelName(name, "open_clip", base_of(name), own_plan=name == base_of(name))
        for name, config in factory._MODEL_CONFIGS.items()
        if CONFIG_KEY in config
    }


def find(name: str) -> ModelName | None:
    """Find a model by name or base; refuse one that cannot be pruned with the reason."""
    try:
        config = open_clip.get_model_config(name)
    except UnknownModelError:
        return None
    except ElipError:
        raise
    except Exception as error:  # whatever a download raises
        reason = str(error).splitlines()[0]
        raise DataError(f"OpenCLIP cannot read the config of {name}: {reason}") from error
    if config is None:
        return None
    known, base = list_names(), base_of(name)
    if name in known:
        return known[name]
    pruned = next((model for model in known.values() if model.base == base), None)
    return pruned if pruned and name == base else _refuse(name)


def _refuse(name: str) -> NoReturn:
    base = base_of(name)
    prefix = name.removesuffix(base)
    config = factory._MODEL_CONFIGS[base]
    reason = why_not(config, PREFIXES.get(prefix, PAPER))
    others = [p + base for p, preset in PREFIXES.items() if why_not(config, preset) is None]
    if reason and others:
        raise UnsupportedModelError(
            f"{name} is not offered: the vision tower of {base} {reason}, such as {others}"
        )
    reason = reason or "asks for pruning in its own config"
    raise UnsupportedModelError(f"{base} cannot be pruned: its vision tower {reason}; {SUPPORTED}")


def base_of(name: str) -> str:
    """Return the name of the base model; `name` itself without a prefix of ours."""
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def register() -> None:
    """Add our names to OpenCLIP and build pruned models from configs that ask for it."""
    if isinstance(factory.CLIP, _Dispatcher):
        return
    folder = os.environ.get(CONFIGS_VARIABLE)
    if folder:
        _add_user_configs(Path(folder))
    for name in MODEL_CLASSES:
        setattr(factory, name, _Dispatcher(getattr(factory, name)))
    rescan = factory._rescan_model_configs

    @functools.wraps(rescan)
    def rescan_and_add() -> None:
        rescan()
        _add_pruned()

    factory._rescan_model_configs = rescan_and_add
    look_up = _explained(factory.get_model_config)
    factory.get_model_config = open_clip.get_model_config = look_up
    # The package's attribute of that name is the function; the module is needed.
    hub: Any = sys.modules["open_clip.push_to_hf_hub"]
    hub.save_config_for_hf = as_base_config(hub.save_config_for_hf)
    factory._rescan_model_configs()
    scheduler = sys.modules.get("open_clip_train.scheduler")
    if scheduler is not None:  # imported before this package; else autoload hears of its import
        schedulers.install(scheduler)


def _explained(look_up: Callable[[str], Any]) -> Callable[[str], Any]:
    """Say why an `elip-` model does not exist, where its base does."""

    @functools.wraps(look_up)
    def get_model_config(model_name: str) -> Any:
        config, base = look_up(model_name), base_of(model_name)
        if config is None and base != model_name:
            if look_up(base) is None:
                raise UnknownModelError(
                    f"model {model_name!r} is not known; {nearest(model_name, list_names())}"
                )
            _refuse(model_name)
        return config

    return get_model_config


def as_base_config(save: Callable[..., None]) -> Callable[..., None]:
    """Wrap OpenCLIP's `save_config_for_hf`, so that a pruned model is pushed as its base model.

    The weights are the base model's already; OpenCLIP without this package would refuse the key.
    """

    @functools.wraps(save)
    def save_config_for_hf(model: Any, config_path: Any, model_config: Any) -> None:
        base = {k: v for k, v in (model_config or {}).items() if k != CONFIG_KEY}
        save(model, config_path, base if model_config is not None else None)

    return save_config_for_hf


def _add_user_configs(path: Path) -> None:
    """Add a user's configs; a file that cannot be read is named and takes nothing else along."""
    for file in sorted(path.glob("*.json")) if path.is_dir() else [path]:
        fault = _fault_of(file)
        if fault is None:
            factory._MODEL_CONFIG_PATHS.append(file)
        else:
            message = f"{CONFIGS_VARIABLE}: left out, {file} is no model config ({fault})"
            warnings.warn(message, stacklevel=2)


def _fault_of(file: Path) -> str | None:
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        return str(error)
    return None if isinstance(config, dict) else f"it holds a {type(config).__name__}"


class _Section(dict[str, Any]):
    """What a name of ours says; that of a file is a plain dict."""


def config_of(section: Any) -> ElipConfig:
    """Read a model config's section; where a name alone says the paper's plan, say a better one."""
    if isinstance(section, _Section) and section["preset"] == PAPER:
        say_recommended("elip-X", "elip-half-X")
    return ElipConfig.from_mapping(section)


class _Derived(dict[str, Any]):
    """A config that was made from its base's; one of a file that has our key is a plain dict."""


def _add_pruned() -> None:
    """Add each model that can be pruned by its names of ours: its config, plus the key."""
    configs = factory._MODEL_CONFIGS
    for name in [name for name, config in configs.items() if isinstance(config, _Derived)]:
        del configs[name]  # its base may have been replaced
    plain = [name for name in configs if CONFIG_KEY not in configs[name]]
    for name in plain:
        for prefix, preset in PREFIXES.items():
            if why_not(configs[name], preset) is not None:
                continue
            section = _Section(preset=preset)
            pruned = _Derived(deepcopy(configs[name]), **{CONFIG_KEY: section})
            configs.setdefault(prefix + name, pruned)
            if name in pretrained._PRETRAINED:
                pretrained._PRETRAINED[prefix + name] = pretrained._PRETRAINED[name]


class _Dispatcher:
    """Stands in for a model class in OpenCLIP's factory, and prunes where the config asks."""

    def __init__(self, model_class: Callable[..., Any]) -> None:
        functools.update_wrapper(self, model_class, updated=())
        self.model_class = model_class

    def __call__(self, *args: Any, elip: Any = None, **kwargs: Any) -> Any:
        model = self.model_class(*args, **kwargs)
        if elip is not None:
            pruner = install(models.describe(model), config_of(elip))
            log.info("ELIP prunes the vision tower: %s", pruner.plan.summary())
        return model
