"""Names: makes `elip_X` known to LAVIS' registry, with the runner and the data set."""

from __future__ import annotations

from lavis.common.registry import registry
from lavis.models import model_zoo

from elip_plugin.errors import UnknownModelError, UnsupportedModelError, nearest
from elip_plugin.hosts.base import ModelName
from elip_plugin.hosts.lavis.compat import datasets, fixes, runner
from elip_plugin.hosts.lavis.models import ARCHS

PREFIX = "elip_"


def register() -> None:
    """Register our models, runner and data set with LAVIS, and fix it; safe to repeat."""
    fixes.apply("register")
    for base, patched in ARCHS.items():
        name = PREFIX + base
        if registry.get_model_class(name) is None:
            registry.register_model(name)(patched)
            model_zoo.model_zoo[name] = list(patched.PRETRAINED_MODEL_CONFIG_DICT)
    if registry.get_runner_class(runner.NAME) is None:
        registry.register_runner(runner.NAME)(runner.ElipRunner)
        registry.register_builder(datasets.NAME)(datasets.PairsBuilder)


def list_names() -> dict[str, ModelName]:
    """List the pruned models by name."""
    return {PREFIX + base: ModelName(PREFIX + base, "lavis", base) for base in ARCHS}


def find(name: str) -> ModelName | None:
    """Find a model by arch, such as "elip_blip_vqa" or "blip_vqa:vqav2", or by its base's."""
    arch, _, kind = name.partition(":")
    base = arch.removeprefix(PREFIX)
    if base not in ARCHS:
        if registry.get_model_class(base) is None:
            return None
        raise UnsupportedModelError(
            f"LAVIS' {base} cannot be pruned, as it trains no vision tower of ALBEF, BLIP or CLIP; "
            f"those that can are {', '.join(ARCHS)}"
        )
    kinds = list(ARCHS[base].PRETRAINED_MODEL_CONFIG_DICT)
    if kind and kind not in kinds:
        raise UnknownModelError(f"{arch} has no model type {kind!r}; {nearest(kind, kinds)}")
    return list_names()[PREFIX + base]
