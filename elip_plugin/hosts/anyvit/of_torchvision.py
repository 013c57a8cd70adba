"""Vision transformers of torchvision by name, with the transforms of their weights."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision import models

from elip_plugin.errors import UnknownModelError, UnsupportedModelError, nearest
from elip_plugin.hosts.anyvit.image_model import Library
from elip_plugin.hosts.building import reading
from elip_plugin.patching.checkpoints import read_state

PLAIN = models.vision_transformer.__name__
"""The module of its vision transformers without windows."""


def load(name: str, checkpoint: str, image_size: int | None) -> Library:
    """Build a model without its classifier, by default for the side of its weights.

    See `factory.create`.
    """
    known = models.list_models(module=models)
    plain = [each for each in known if models.get_model_builder(each).__module__ == PLAIN]
    if name not in known:
        hint = nearest(name, known, "see torchvision.models.list_models()")
        raise UnknownModelError(f"torchvision has no model {name!r}; {hint}")
    if name not in plain:
        raise UnsupportedModelError(
            f"torchvision:{name} is no plain vision transformer: of torchvision {plain} can be "
            "pruned"
        )
    make = models.get_model_weights(name).DEFAULT.transforms
    transform = make()
    if image_size is not None:
        larger = round(transform.resize_size[0] * image_size / transform.crop_size[0])
        transform = make(crop_size=image_size, resize_size=larger)
    side = transform.crop_size[0]
    try:
        model: Any = models.get_model(name, weights=None, image_size=side)
    except (RuntimeError, AssertionError) as error:
        raise UnsupportedModelError(
            f"torchvision:{name} cannot be built for images of {side} pixels ({error}): give a "
            "multiple of its patches' side"
        ) from error
    model.heads = nn.Identity()
    if checkpoint:
        state = {k: v for k, v in read_state(checkpoint).items() if not k.startswith("heads.")}
        with reading(checkpoint, f"torchvision:{name}"):
            model.load_state_dict(state)
    return Library(model, side, transform, tuple(transform.mean), tuple(transform.std))
