"""Models of timm by name, with its own preprocessing."""

from __future__ import annotations

from typing import Any

import timm
from timm.data import create_transform, resolve_model_data_config

from elip_plugin.errors import UnknownModelError, UnsupportedModelError, nearest
from elip_plugin.hosts.anyvit.image_model import Library
from elip_plugin.hosts.building import reading
from elip_plugin.patching.checkpoints import read_state


def load(name: str, checkpoint: str, image_size: int | None) -> Library:
    """Build a model without its classifier; see `factory.create`.

    `name` may have the tag of its weights, which only the preprocessing uses.
    """
    if not timm.is_model(name):
        hint = nearest(name, timm.list_models(), "see timm.list_models()")
        raise UnknownModelError(f"timm has no model {name!r}; {hint}")
    options: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    try:
        model: Any = timm.create_model(name, num_classes=0, **options)
    except (TypeError, ValueError, AssertionError) as error:
        if image_size is None:
            raise
        raise UnsupportedModelError(
            f"timm:{name} cannot be built for images of {image_size} pixels ({error}): "
            "leave image_size out, or give a multiple of its patches' side"
        ) from error
    if checkpoint:
        state = read_state(checkpoint)
        with reading(checkpoint, f"timm:{name}"):
            # By timm's own way: other names of weights, and positions for other sizes.
            model = timm.create_model(
                name,
                num_classes=0,
                pretrained=True,
                pretrained_cfg_overlay={"state_dict": state, "custom_load": False},
                **options,
            )
    data = resolve_model_data_config(model)
    side = image_size or data["input_size"][1]
    transform = create_transform(**{**data, "input_size": (3, side, side)}, is_training=False)
    return Library(model, side, transform, tuple(data["mean"]), tuple(data["std"]))
