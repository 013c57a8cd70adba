"""Names: makes `elip-X` resolve wherever OpenCLIP resolves X, and builds what they name."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from open_clip import factory, pretrained

from elip_plugin.config import ElipConfig
from elip_plugin.errors import ConfigError
from elip_plugin.registry import Variant

PREFIX = "elip-"
CONFIG_KEY = "elip"
"""Top-level key of a model config that turns pruning on."""

CONFIGS_VARIABLE = "ELIP_MODEL_CONFIGS"
"""Environment variable: a folder (or file) of model configs, seen by unmodified commands."""

MODEL_CLASSES = ("CLIP", "CustomTextCLIP")
"""Globals of `open_clip.factory` through which every model is built."""

log = logging.getLogger("elip_plugin")


def supported(config: Mapping[str, Any]) -> bool:
    """Tell whether a model config describes a tower that can be pruned.

    Args:
        config: An OpenCLIP model config.

    Returns:
        True for a native ViT with class-token pooling in a contrastive model.
    """
    vision = config["vision_cfg"]
    return (
        not vision.get("timm_model_name")
        and isinstance(vision.get("layers", 12), int)
        and not vision.get("attentional_pool", False)
        and vision.get("pool_type", "tok") == "tok"
        and "multimodal_cfg" not in config
    )


def variants() -> dict[str, Variant]:
    """List the names this host offers.

    Returns:
        Variants by name.
    """
    register()
    return {
        name: Variant(name, "open_clip", name.removeprefix(PREFIX), factory.create_model)
        for name, config in factory._MODEL_CONFIGS.items()
        if CONFIG_KEY in config
    }


def register() -> None:
    """Add the `elip-` names to OpenCLIP and build pruned models from configs that ask for it.

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
    rescan = factory._rescan_model_configs

    @functools.wraps(rescan)
    def rescan_with_twins() -> None:
        rescan()
        _add_twins()

    factory._rescan_model_configs = rescan_with_twins
    rescan_with_twins()


def _add_user_configs(path: Path) -> None:
    if not path.exists():
        raise ConfigError(f"{CONFIGS_VARIABLE}={path} does not exist; name a folder of .json files")
    factory._MODEL_CONFIG_PATHS.append(path)


def _add_twins() -> None:
    """Give each supported model its `elip-` twin: the same config, plus the key."""
    configs = factory._MODEL_CONFIGS
    for name in list(configs):
        twin = PREFIX + name
        if twin in configs or CONFIG_KEY in configs[name] or not supported(configs[name]):
            continue
        configs[twin] = {**deepcopy(configs[name]), CONFIG_KEY: {"preset": "paper"}}
        if name in pretrained._PRETRAINED:
            pretrained._PRETRAINED[twin] = pretrained._PRETRAINED[name]


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
