"""OpenCLIP's models, with the text encoded first so that it can guide the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import open_clip
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from elip_plugin.core.guide import project_to_vision_width
from elip_plugin.errors import ElipError, UnsupportedModelError
from elip_plugin.hosts.open_clip import towers
from elip_plugin.hosts.open_clip.guide import linear_maps
from elip_plugin.hosts.open_clip.support import SUPPORTED
from elip_plugin.patching.description import Description, Tower
from elip_plugin.patching.named import patched_class
from elip_plugin.patching.swap import swap_for
from elip_plugin.patching.text import CAPTION_LEAKS, TextFirst


class ContrastiveModel(TextFirst):
    """A model of OpenCLIP that encodes texts itself."""

    def elip_guide(self, given: Mapping[str, Any]) -> Tensor | None:
        """Encode the text as the forward does; see `TextFirst`."""
        image, text = given.get("image"), given.get("text")
        encoded = given.get("image_latent") is not None and given.get("image_embs") is not None
        if encoded or image is None or text is None:
            return None
        model: Any = self
        # As the forward does. After the public method FSDP2 shards the weights anew (OpenCLIP 4).
        encode = model._encode_text if hasattr(model, "_encode_text") else model.encode_text
        coca = isinstance(model, open_clip.CoCa)
        features = encode(text)[0] if coca else encode(text, normalize=True)
        return project_to_vision_width(features, linear_maps(model.visual))


MODELS: dict[type, type[nn.Module]] = {
    cls: patched_class(
        ContrastiveModel, cls, "_encode_text" if hasattr(cls, "_encode_text") else "encode_text"
    )
    for cls in (open_clip.CLIP, open_clip.CustomTextCLIP, open_clip.CoCa)
}


def describe(module: Any) -> Description:
    """Describe an OpenCLIP model or a bare vision tower; see `Host.describe`."""
    if hasattr(module, "trainable_module"):
        raise UnsupportedModelError(
            f"{type(module).__name__} is a training task: apply ELIP to the model it is made from, "
            "or call elip_plugin.apply(task.trainable_module) before it is sharded or wrapped"
        )
    if not hasattr(module, "visual"):
        return Description(module, _describe_tower(module))
    model = swap_for(module, MODELS)
    return Description(
        module,
        _describe_tower(module.visual),
        (model,),
        no_eval_by_text=CAPTION_LEAKS,
        no_text_guide=_why_no_guide(module.visual),
    )


def _describe_tower(visual: Any) -> Tower:
    if type(visual) is VisionTransformer:
        return towers.describe(visual)
    if type(visual) is TimmModel:
        from elip_plugin.hosts.open_clip import timm_towers  # needs a timm with timm.layers

        return timm_towers.describe(visual)
    raise UnsupportedModelError(
        f"vision tower {type(visual).__name__} cannot be pruned: {SUPPORTED}"
    )


def _why_no_guide(visual: Any) -> ElipError | None:
    try:
        linear_maps(visual)
    except UnsupportedModelError as error:
        return error
    return None
