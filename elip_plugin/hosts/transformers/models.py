"""The models of transformers, with the text encoded first so that it can guide the image."""

from __future__ import annotations

import copy
import inspect
from contextlib import suppress
from types import ModuleType
from typing import Any, ClassVar

import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from elip_plugin.core.guide import project_to_vision_width
from elip_plugin.errors import UnknownTowerError, UnsupportedModelError
from elip_plugin.hosts.transformers import blip, guide, towers
from elip_plugin.hosts.transformers.guide import linear_maps, text_features
from elip_plugin.hosts.transformers.saving import ModelSwap, PrunedModel
from elip_plugin.patching.calls import find, opened
from elip_plugin.patching.description import Description, Tower
from elip_plugin.patching.named import NamedAsReplaced, patched_class, wrapped_forward
from elip_plugin.patching.swap import Swap, swap_for
from elip_plugin.patching.wrappers import unwrap

vit: ModuleType | None = None
with suppress(ImportError):  # of a class that a newer transformers renamed
    from elip_plugin.hosts.transformers import vit

LEAK = (
    "an image pruned by its own caption leaks the answer into retrieval and zero-shot scores; use "
    "'full' or 'image', or guide_source 'batch', which knows no pairs"
)

NOT_TEXT = ("pixel_values", "return_loss", "interpolate_pos_encoding", "return_dict")
"""Arguments of a model's forward that do not concern its text."""


class EncodedText:
    """The text of a forward in progress, which is encoded once."""

    output: Any = None


class TextModel(NamedAsReplaced):
    """A text model that encodes the text of a guided forward once."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Encode text, or return what is encoded already, without its hooks."""
        host: Any = super()
        encoded = find(self, EncodedText)
        if encoded is None:
            return host.__call__(*args, **options)
        as_tuple = options.pop("return_dict", None) is False
        if encoded.output is None:
            encoded.output = host.__call__(*args, **options)
        # A copy: `get_text_features` overwrites a part of what it is given.
        output = copy.copy(encoded.output)
        return output.to_tuple() if as_tuple and not isinstance(output, tuple) else output


class TextFirst(PrunedModel):
    """A contrastive model whose vision tower is guided by the text.

    The host encodes the image first and the text second. Here the text is encoded before the
    host's own forward, which then gets that result from its text model.
    """

    elip_parameters: ClassVar[tuple[str, ...]]
    """Names of the parameters of the host's forward, in order."""

    elip_text_parameters: ClassVar[frozenset[str] | None]
    """Names of the parameters of the host's `get_text_features`; None if it takes any."""

    @classmethod
    def body_for(cls, replaces: Any, *data: Any) -> dict[str, Any]:
        """Return the forward, and the names of its parameters."""
        get_text = inspect.signature(replaces.get_text_features)
        takes_any = any(p.kind is p.VAR_KEYWORD for p in get_text.parameters.values())
        return {
            **wrapped_forward(replaces),
            "elip_parameters": tuple(inspect.signature(replaces.forward).parameters)[1:],
            "elip_text_parameters": None if takes_any else frozenset(get_text.parameters),
        }

    def elip_forward(self, host: Any, args: Any, options: Any) -> Any:
        """Encode text, then run the host's forward with the image guided by it."""
        model: Any = self
        given = {**dict(zip(self.elip_parameters, args)), **options}
        both = given.get("input_ids") is not None and given.get("pixel_values") is not None
        call = self.elip.start(model)
        if not both or not call.needs_guide:
            return host(self, *args, **options)
        with opened(model.text_model, EncodedText()):
            features = text_features(model, **self._text_options(given))
            guide = project_to_vision_width(features, linear_maps(model))
            with call.guided(guide):
                return host(self, *args, **options)

    def _text_options(self, given: dict[str, Any]) -> dict[str, Any]:
        known = self.elip_text_parameters
        return {
            name: value
            for name, value in given.items()
            if name not in NOT_TEXT and value is not None and (known is None or name in known)
        }


MODELS: dict[type, type[nn.Module]] = {
    cls: patched_class(TextFirst, cls)
    for cls in (
        *(family.find_class(f"{family.prefix}Model") for family in towers.FAMILIES),
        getattr(transformers, "VisionTextDualEncoderModel", None),
    )
    if cls is not None and cls not in blip.MODELS
} | blip.MODELS

TOWERS = {
    *(vit.MODELS if vit is not None else ()),
    *(
        family.find_class(family.prefix + kind)
        for family in towers.FAMILIES
        for kind in ("VisionModel", "VisionModelWithProjection", "VisionTransformer")
    ),
}
"""Vision towers without a text model, which are left as they are but for what runs their layers."""


def _describe_tower(module: Any) -> Tower:
    """Describe the part of a model or tower that has the embeddings and runs the layers."""
    tower = module
    while not hasattr(tower, "encoder") and hasattr(tower, "vision_model"):
        tower = tower.vision_model
    if vit is not None and type(tower) in vit.MODELS:
        return vit.describe(tower)
    if type(getattr(tower, "encoder", None)) in towers.ENCODERS:
        return towers.describe(tower)
    known = [family.prefix for family in towers.FAMILIES] + ["ViT"] * (vit is not None)
    raise UnknownTowerError(
        f"the vision tower {type(tower).__name__} of {type(module).__name__} cannot be pruned; "
        f"those of {known} can (SigLIP 2 at a fixed size is SigLIP's; NaFlex, whose tokens "
        "have masks, is not supported)"
    )


def describe(module: Any) -> Description:
    """Describe a model, wrapped or not, or a bare vision tower; see `Host.describe`."""
    module = unwrap(module)
    tower = _describe_tower(module)
    if type(module) in TOWERS:
        return Description(module, tower)
    if type(module) not in MODELS and isinstance(module, PreTrainedModel):
        raise UnsupportedModelError(
            f"{type(module).__name__} has no text that could guide its tower: prune its "
            "vision_model, or one of "
            f"{sorted(cls.__name__ for cls in MODELS)}"
        )
    if type(module) in blip.MODELS:
        return blip.describe(module, tower)
    text = Swap(module.text_model, patched_class(TextModel, type(module.text_model)))
    model = ModelSwap(module, swap_for(module, MODELS).patched)
    return Description(module, tower, (text, model), no_eval_by_text=LEAK)


def text_guide(module: Any, features: Tensor) -> Tensor:
    """Turn text features, or a ready guide [B, D], into a guide; see `Host.text_guide`."""
    if isinstance(module, blip.PrunedBlip):
        return module.elip_project(features)
    return guide.text_guide(module, features)
