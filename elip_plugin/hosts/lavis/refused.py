"""LAVIS' archs that cannot be pruned: asking for one of them by our prefix says why."""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn

from lavis.common.registry import registry

from elip_plugin.errors import UnsupportedModelError
from elip_plugin.hosts.lavis.models import ARCHS

REASONS = {
    "blip_diffusion": "makes images, and keeps its BLIP-2 tower frozen",
    "blip2_vicuna_xinstruct": "reads sound, video and point clouds, and is not tried",
    "alpro": "has a TimeSformer, whose attention needs all patches of all frames",
}
"""Reasons by the beginning of an arch's name."""


def refuse(base: str) -> NoReturn:
    """Raise the error that says why an arch cannot be pruned."""
    found = (reason for start, reason in REASONS.items() if base.startswith(start))
    reason = next(found, "trains no vision tower of ALBEF, BLIP or CLIP")
    raise UnsupportedModelError(
        f"LAVIS' {base} cannot be pruned: it {reason}; those that can are {', '.join(ARCHS)}"
    )


class Refused:
    """Stands for an arch that cannot be pruned in LAVIS' registry; LAVIS calls one of both."""

    base: ClassVar[str]

    @classmethod
    def default_config_path(cls, model_type: Any = None) -> NoReturn:
        """Refuse the arch."""
        refuse(cls.base)

    @classmethod
    def from_config(cls, cfg: Any = None) -> NoReturn:
        """Refuse the arch."""
        refuse(cls.base)


def refused(base: str) -> type[Any]:
    """Build the class that stands for an arch."""
    model = registry.get_model_class(base)
    return type(f"Refused{model.__name__}", (Refused, model), {"base": base})
