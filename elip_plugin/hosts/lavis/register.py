"""Names: makes `elip_X` known to LAVIS' registry, with the runner and the data sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lavis.common.registry import registry
from lavis.models import load_model, model_zoo

from elip_plugin.config import DEFAULT_PRESET
from elip_plugin.hosts import lavis_compat
from elip_plugin.hosts.lavis.datasets import register_builders
from elip_plugin.hosts.lavis.generation import mend_generation
from elip_plugin.hosts.lavis.models import ARCHS
from elip_plugin.hosts.lavis.runner import NAME, ElipRunner
from elip_plugin.registry import Variant

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


def variants() -> dict[str, Variant]:
    """List the names this host offers.

    Returns:
        Variants by name; `create` takes `model_type`, as LAVIS' `load_model` does.
    """
    register()
    make: Callable[..., Any] = load_model
    names = {base: PREFIX + base for base in ARCHS}
    return {n: Variant(n, "lavis", base, make, DEFAULT_PRESET) for base, n in names.items()}
