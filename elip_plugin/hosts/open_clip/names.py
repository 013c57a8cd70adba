"""Names: makes `elip-X` resolve wherever OpenCLIP resolves X, and builds what they name."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
from open_clip import factory, pretrained

from elip_plugin.config import ElipConfig
from elip_plugin.errors import ConfigError, UnknownModelError, UnsupportedModelError
from elip_plugin.hosts.open_clip import export
from elip_plugin.hosts.open_clip.export import CONFIG_KEY
from elip_plugin.hosts.open_clip.support import SUPPORTED, why_not
from elip_plugin.hosts.registry import Variant

PREFIXES = {"elip-fast-": "fast", "elip-": "paper"}
"""Presets by the prefix that asks for them; the longer prefix first."""

CONFIGS_VARIABLE = "ELIP_MODEL_CONFIGS"
"""Environment variable: a folder (or file) of model configs, seen by unmodified commands."""

MODEL_CLASSES = ("CLIP", "CustomTextCLIP", "CoCa")
"""Globals of `open_clip.factory` through which every model is built."""

log = logging.getLogger("elip_plugin")


def variants() -> dict[str, Variant]:
    """List the names this host offers.

    Returns:
        Variants by name.
    """
    register()
    return {
        name: Variant(name, "open_clip", base_of(name), factory.create_model, plan_of(name))
        for name, config in factory._MODEL_CONFIGS.items()
        if CONFIG_KEY in config
    }


def known_base(name: str) -> str:
    """Find the base model of a name that a user gave.

    Args:
        name: A model name, with or without our prefix.

    Returns:
        The name of the base model.

    Raises:
        UnknownModelError: If OpenCLIP has no such model.
    """
    register()
    base = base_of(name)
    if open_clip.get_model_config(base) is None:
        raise UnknownModelError(f"model {base!r} is not known to OpenCLIP; see `elip models`")
    return base


def plan_of(name: str) -> str:
    """Tell what a pruned model's name says of its plan.

    Args:
        name: A pruned model's name.

    Returns:
        A preset's name; "own" for a config with a section of its own.
    """
    return PREFIXES.get(name.removesuffix(base_of(name)), "own")


def base_of(name: str) -> str:
    """Strip our prefix from a model's name.

    Args:
        name: Any model name.

    Returns:
        The name of the base model; `name` itself without a prefix of ours.
    """
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def register() -> None:
    """Add our names to OpenCLIP and build pruned models from configs that ask for it.

    Safe to repeat. Only module globals of OpenCLIP are replaced, all of them looked up by
    OpenCLIP at call time.
    """
    if isinstance(factory.CLIP, _Dispatcher):
        return
    folder = os.environ.get(CONFIGS_VARIABLE)
    if folder:
        _add_user_configs(Path(folder))
    for name in MODEL_CLASSES:
        setattr(factory, name, _Dispatcher(getattr(factory, name)))
    factory._rescan_model_configs = _followed_by(factory._rescan_model_configs, _add_twins)
    look_up = _explained(factory.get_model_config)
    factory.get_model_config = open_clip.get_model_config = look_up
    export.install()
    factory._rescan_model_configs()


def _followed_by(function: Callable[[], None], then: Callable[[], None]) -> Callable[[], None]:
    @functools.wraps(function)
    def both() -> None:
        function()
        then()

    return both


def _explained(look_up: Callable[[str], Any]) -> Callable[[str], Any]:
    """Say why an `elip-` model does not exist, where its base does."""

    @functools.wraps(look_up)
    def get_model_config(model_name: str) -> Any:
        config, base = look_up(model_name), base_of(model_name)
        if config is None and base != model_name:
            base_config = look_up(base)
            if base_config is not None:
                raise UnsupportedModelError(
                    f"{model_name} does not exist: the vision tower of {base} "
                    f"{why_not(base_config) or 'asks for pruning in its own config'}; {SUPPORTED}"
                )
        return config

    return get_model_config


def _add_user_configs(path: Path) -> None:
    if not path.exists():
        raise ConfigError(f"{CONFIGS_VARIABLE}={path} does not exist; name a folder of .json files")
    factory._MODEL_CONFIG_PATHS.append(path)


def _add_twins() -> None:
    """Give each model that can be pruned its twins: the same config, plus the key."""
    configs = factory._MODEL_CONFIGS
    plain = [name for name in configs if CONFIG_KEY not in configs[name]]
    for name in plain:
        if why_not(configs[name]) is not None:
            continue
        for prefix, preset in PREFIXES.items():
            twin = {**deepcopy(configs[name]), CONFIG_KEY: {"preset": preset}}
            configs.setdefault(prefix + name, twin)
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
            # Late: this module must import while `models` itself is importing OpenCLIP.
            from elip_plugin.hosts.open_clip.models import patch_model

            pruner = patch_model(model, ElipConfig.from_mapping(elip))
            log.info("ELIP prunes the vision tower: %s", pruner.plan.summary())
        return model
