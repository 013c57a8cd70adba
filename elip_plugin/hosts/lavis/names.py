"""Names: makes `elip_X` known to LAVIS' registry, with the runner and the data sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lavis.common.registry import registry
from lavis.models import load_model, model_zoo

from elip_plugin.config import DEFAULT_PRESET
from elip_plugin.errors import UnknownModelError
from elip_plugin.hosts import lavis_libraries as lavis_compat
from elip_plugin.hosts.lavis.models import ARCHS
from elip_plugin.hosts.lavis.runtime.datasets import register_builders
from elip_plugin.hosts.lavis.runtime.generation import mend_generation
from elip_plugin.hosts.lavis.runtime.runner import NAME, ElipRunner
from elip_plugin.hosts.registry import Variant

PREFIX = "elip_"


def register() -> None:
    """Register our models, runner and data sets with LAVIS; safe to repeat.

    Beside libraries newer than its pins, LAVIS' text models are mended as well.
    """
    lavis_compat.mend_models()
    if lavis_compat.transformers_version() >= (4, 27):
        mend_generation()
    for base, twin in ARCHS.items():
        name = PREFIX + base
        if registry.get_model_class(name) is None:
            registry.register_model(name)(twin)
            model_zoo.model_zoo[name] = list(twin.PRETRAINED_MODEL_CONFIG_DICT)
    if registry.get_runner_class(NAME) is None:
        registry.register_runner(NAME)(ElipRunner)
    register_builders()


def known_arch(name: str) -> tuple[Any, str]:
    """Find the class and the model type of a name that a user gave.

    Args:
        name: An arch, with or without our prefix; with a model type after a colon, such as
            "elip_blip_vqa:vqav2", else its first type.

    Returns:
        The pruned class and the type.

    Raises:
        UnknownModelError: If there is no such arch or type.
    """
    arch, _, kind = name.partition(":")
    twin = ARCHS.get(arch.removeprefix(PREFIX))
    if twin is None:
        raise UnknownModelError(f"arch {arch!r} is not offered; see `elip models`")
    kinds = list(twin.PRETRAINED_MODEL_CONFIG_DICT)
    kind = kind or kinds[0]
    if kind not in kinds:
        raise UnknownModelError(f"{arch} has no model type {kind!r}; it has {kinds}")
    return twin, kind


def variants() -> dict[str, Variant]:
    """List the names this host offers.

    Returns:
        Variants by name; `create` takes `model_type`, as LAVIS' `load_model` does.
    """
    register()
    make: Callable[..., Any] = load_model
    names = {base: PREFIX + base for base in ARCHS}
    return {n: Variant(n, "lavis", base, make, DEFAULT_PRESET) for base, n in names.items()}
