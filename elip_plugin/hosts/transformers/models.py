"""The models of transformers, with the text encoded first so that it can guide the image."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from elip_plugin.core.guide import project_to_vision_width
from elip_plugin.errors import UnknownTowerError
from elip_plugin.hosts.transformers import blip, towers
from elip_plugin.hosts.transformers.guide import linear_maps, text_features
from elip_plugin.hosts.transformers.saving import ModelSwap, PrunedModel
from elip_plugin.patching.calls import find
from elip_plugin.patching.description import Description, Tower
from elip_plugin.patching.named import patched_class
from elip_plugin.patching.swap import Swap, swap_for
from elip_plugin.patching.text import CAPTION_LEAKS, EncodedText, EncodesOnce, TextFirst
from elip_plugin.patching.wrappers import unwrap

NOT_TEXT = ("pixel_values", "return_loss", "interpolate_pos_encoding", "return_dict")
"""Arguments of a model's forward that do not concern its text."""


class TextModel(EncodesOnce):
    """A text model that encodes the text of a guided forward once."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Encode text, or return what is encoded already, without the model's hooks."""
        encoded = find(self, EncodedText)
        if encoded is None:
            return super().__call__(*args, **options)  # type: ignore[misc]
        as_tuple = options.pop("return_dict", None) is False
        if encoded.output is None:
            encoded.output = super().__call__(*args, **options)  # type: ignore[misc]
        # A copy: `get_text_features` overwrites a part of what it is given.
        output = copy.copy(encoded.output)
        return output.to_tuple() if as_tuple and not isinstance(output, tuple) else output


class ContrastiveModel(TextFirst, PrunedModel):
    """A contrastive model with a text model of its own."""

    elip_encoder = "text_model"

    elip_text_parameters: ClassVar[frozenset[str] | None]
    """Names of the parameters of the host's `get_text_features`; None if it takes any."""

    @classmethod
    def body_for(cls, replaces: Any, *data: Any) -> dict[str, Any]:
        """Return the forward, and the names of the parameters that concern texts."""
        get_text = inspect.signature(replaces.get_text_features)
        takes_any = any(p.kind is p.VAR_KEYWORD for p in get_text.parameters.values())
        names = None if takes_any else frozenset(get_text.parameters)
        return {**super().body_for(replaces, *data), "elip_text_parameters": names}

    def elip_guide(self, given: Mapping[str, Any]) -> Tensor | None:
        """Encode the text as the forward does; see `TextFirst`."""
        if given.get("input_ids") is None or given.get("pixel_values") is None:
            return None
        known = self.elip_text_parameters
        options = {
            name: value
            for name, value in given.items()
            if name not in NOT_TEXT and value is not None and (known is None or name in known)
        }
        return project_to_vision_width(text_features(self, **options), linear_maps(self))


NAMES = (
    "CLIPModel",
    "SiglipModel",
    "MetaClip2Model",
    "AltCLIPModel",
    "ChineseCLIPModel",
    "BlipModel",
    "VisionTextDualEncoderModel",
)
MODELS: dict[type, type[nn.Module]] = {
    getattr(transformers, name): patched_class(ContrastiveModel, getattr(transformers, name))
    for name in NAMES
    if hasattr(transformers, name)
} | blip.MODELS


def _describe_tower(module: Any) -> Tower:
    """Describe the part of a model or tower that has the embeddings and runs the layers."""
    tower = module
    while not towers.find_layers(tower) and hasattr(tower, "vision_model"):
        tower = tower.vision_model
    if towers.find_layers(tower):
        return towers.describe(tower)
    raise UnknownTowerError(
        f"the vision tower {type(tower).__name__} of {type(module).__name__} cannot be pruned; "
        f"those with layers {list(towers.LAYERS)} can (SigLIP 2 at a fixed size is SigLIP's; "
        "NaFlex, whose tokens have masks, is not supported)"
    )


def describe(module: Any) -> Description:
    """Describe a model, wrapped or not, or a bare vision tower; see `Host.describe`."""
    module = unwrap(module)
    tower = _describe_tower(module)
    if towers.name_of(type(module)).endswith(towers.TOWERS):
        return Description(module, tower)
    if type(module) not in MODELS and isinstance(module, PreTrainedModel):
        raise UnknownTowerError(
            f"{type(module).__name__} has no text that could guide its tower: prune its "
            "vision_model, or one of "
            f"{sorted(cls.__name__ for cls in MODELS)}"
        )
    if type(module) in blip.MODELS:
        return blip.describe(module, tower)
    text_model = patched_class(TextModel, type(module.text_model))
    text = Swap(module.text_model, text_model)
    model = ModelSwap(module, swap_for(module, MODELS).patched)
    return Description(module, tower, (text, model), no_eval_by_text=CAPTION_LEAKS)
