"""Build the models of transformers with all that planning, measuring and drawing need."""

from __future__ import annotations

from typing import Any

from transformers import AutoModel

from elip_plugin.config import ElipConfig
from elip_plugin.errors import ConfigError
from elip_plugin.hosts.building import place_for, seeded
from elip_plugin.hosts.transformers import blip, folders
from elip_plugin.hosts.transformers.host_models import NO_EXPORT, ReadModel, TransformersModel
from elip_plugin.hosts.transformers.models import describe
from elip_plugin.hosts.transformers.names import CONFIG_KEY, PREFIX
from elip_plugin.patching.install import install
from elip_plugin.patching.monkeypatch import silenced


def create(
    name: str,
    *,
    config: ElipConfig | None = None,
    checkpoint: str = "",
    image_size: int | None = None,
    device: str = "cpu",
) -> TransformersModel:
    """Build a pruned model; `checkpoint` is a folder of `save_pretrained`. See `Host.create`."""
    base = name.removeprefix(PREFIX)
    if checkpoint and image_size is not None:
        raise ConfigError(
            f"image_size {image_size} with the weights of {checkpoint}: transformers has their "
            "positions at one size; leave one of the two out"
        )
    source = checkpoint or base
    folders.check_folder(source)
    host_config = folders.config_of(source)
    section, cls = getattr(host_config, CONFIG_KEY, None), _class_of(host_config)
    if image_size is not None:
        folders.resize(host_config, image_size)
    if checkpoint:
        model = folders.load(checkpoint, cls)
    else:
        with seeded(), silenced(), place_for(device):
            model = folders.build(host_config, source, cls)
    model = model.to(device).eval()
    description = describe(model)
    if config is None:
        config = ElipConfig.from_mapping(section, default=description.default)
    install(description, config)
    vision = model.config.vision_config
    side = vision.image_size // vision.patch_size
    processor, _ = folders.processor_of(source, vision.image_size, required=bool(checkpoint))
    is_read = isinstance(model, blip.PrunedBlip)
    return (ReadModel if is_read else TransformersModel)(
        base,
        model,
        (side, side),
        *folders.normalization(processor),
        checkpoint or "random weights",
        folder=source,
        processor=processor,
        has_text_tower=not is_read,
        no_export=NO_EXPORT if is_read else "",
    )


def _class_of(config: Any) -> Any:
    """Return the class that a config is of, where its family has several; else `AutoModel`."""
    named = {cls.__name__: cls for cls in blip.MODELS}
    return next((named[name] for name in config.architectures or () if name in named), AutoModel)
