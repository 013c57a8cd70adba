"""Which model, which plan: what the options of every command mean, and what its output is about."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from elip_plugin.config import ElipConfig
from elip_plugin.errors import ConfigError
from elip_plugin.label import RANDOM, plan_name

if TYPE_CHECKING:
    from elip_plugin.hosts.base import HostModel


@dataclass(frozen=True)
class Target:
    """A model and a plan, as the options of a command name them."""

    model: str
    config: ElipConfig | None  # None for what the host makes of the model's name
    said: bool  # whether the name or an option says the plan; else it is a default

    def build(
        self, *, checkpoint: str = "", image_size: int | None = None, device: str = "cpu"
    ) -> HostModel:
        """Build the model, pruned by the plan; the device "meta" builds shapes without weights."""
        from elip_plugin.hosts.registry import create

        return create(
            self.model, self.config, checkpoint=checkpoint, image_size=image_size, device=device
        )


def resolve(model: str, plan: str = "", keep: str = "", embeds: bool = False) -> Target:
    """Find the plan that a command's options name.

    A command that embeds pictures prunes evaluation by the image alone, whatever the plan says, and
    has the preset `embed` for a name that says no plan; of others, the host knows the default.
    Raises a ConfigError if the plan or its keep ratios are not valid.
    """
    from elip_plugin.hosts.registry import create, find_model
    from elip_plugin.measure import preview
    from elip_plugin.patching.install import find_pruner

    try:
        config = ElipConfig.from_mapping(plan) if plan else None
    except ConfigError as error:
        raise ConfigError(f"--plan {plan}: {error}") from error
    said = bool(plan) or _says_plan(model)
    if embeds and not said:
        config = ElipConfig.preset("embed")
    if config is None and (keep or embeds):  # the host knows what the name says
        config = find_pruner(create(model, device="meta").model).config
    if config is not None and keep:
        config = with_keep(config, keep)
    if config is not None and embeds:
        config = preview.image_only(config)
    find_model(model)  # an unknown name is said before any work
    return Target(model, config, said or bool(keep))


def _says_plan(model: str) -> bool:
    """Whether a model's name, or the config that it names, says what is pruned."""
    from elip_plugin.hosts.registry import find_model

    if model.startswith("elip"):
        return True
    known = find_model(model)
    return known.name == model and known.own_plan


def with_keep(config: ElipConfig, keep: str) -> ElipConfig:
    """Return a plan with the keep ratios of `--keep`."""
    try:
        values = [float(v) if "." in v else int(v) for v in keep.split(",")]
    except ValueError:
        raise ConfigError(
            f"--keep {keep!r}: write ratios or counts, such as 0.9,0.65,0.4"
        ) from None
    stages, name = config.stages, plan_name(config)
    if len(values) != len(stages):
        now = ",".join(f"{stage.keep:g}" for stage in stages)
        many = "1 stage" if len(stages) == 1 else f"{len(stages)} stages"
        raise ConfigError(
            f"--keep {keep} has {len(values)} values, and the plan {name!r} has {many}: write "
            f"{len(stages)}, such as its own --keep {now}, or name another plan by --plan"
        )
    pairs = zip(stages, values)
    try:
        return replace(config, stages=tuple(replace(s, keep=v) for s, v in pairs))
    except ConfigError as error:
        raise ConfigError(f"--keep {keep}, for the plan {name!r}: {error}") from error


def check_weights(command: str, model: str, checkpoint: str, random: bool) -> None:
    """Refuse random weights before any work, unless the user asks for them by `--random`."""
    from elip_plugin.hosts.registry import create

    if checkpoint and random:
        raise ConfigError(f"--random and --checkpoint {checkpoint}: leave one of them out")
    if not checkpoint and not random and create(model, device="meta").weights == RANDOM:
        raise ConfigError(
            f"elip {command} of {model} needs weights: give --checkpoint (a file, a tag of "
            "OpenCLIP's, or a folder of save_pretrained), or --random to try it without"
        )


def default_device(device: str) -> str:
    """Return `--device`, by default cuda where there is one."""
    import torch

    return device or ("cuda" if torch.cuda.is_available() else "cpu")
