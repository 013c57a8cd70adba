"""OpenCLIP's models, with the text encoded first so that it can guide the image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import open_clip
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from elip_plugin.core.guide import project_to_vision_width
from elip_plugin.errors import ElipError, UnsupportedModelError
from elip_plugin.hosts.open_clip import towers
from elip_plugin.hosts.open_clip.guide import linear_maps
from elip_plugin.hosts.open_clip.support import SUPPORTED
from elip_plugin.patching.calls import find, thread
from elip_plugin.patching.description import Description, Tower
from elip_plugin.patching.swap import Patched, swap_for

LEAK = (
    "an image pruned by its own caption leaks the answer into retrieval and zero-shot scores; use "
    "'full' or 'image', or guide_source 'batch', which knows no pairs"
)


class TextFirst(Patched):
    """Forward of a contrastive model whose image tower is guided by the text.

    The host encodes the image first. Calling its own forward for the text alone and then
    for the image alone turns the order round without a copy of its code.
    """

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> Any:
        """Encode text, then the image guided by it."""
        host: Callable[..., Any] = super().forward  # type: ignore[misc]
        if image is None or text is None:
            return host(image, text)
        call = self.elip.start(self)  # type: ignore[arg-type]
        if not call.needs_guide:
            return host(image, text)
        texts = host(None, text)
        features = texts["text_features"] if isinstance(texts, dict) else texts[1]
        with call.guided(project_to_vision_width(features, linear_maps(self.visual))):
            images = host(image, None)
        if isinstance(images, dict):
            return {**images, "text_features": texts["text_features"]}
        return (images[0], texts[1], *images[2:])

    def __prepare_scriptable__(self) -> NoReturn:
        """Refuse TorchScript, which would drop the pruning."""
        raise UnsupportedModelError(
            "TorchScript cannot hold an ELIP model: train without --torchscript "
            "(--torchcompile works), or call find_handle(model).remove() to script the "
            "unpruned base model"
        )


class ElipCLIP(TextFirst, open_clip.CLIP):
    """`open_clip.CLIP` with text-guided pruning."""

    replaces = open_clip.CLIP


class ElipCustomTextCLIP(TextFirst, open_clip.CustomTextCLIP):
    """`open_clip.CustomTextCLIP` with text-guided pruning."""

    replaces = open_clip.CustomTextCLIP


class EncodedText(NamedTuple):
    """The text of a forward in progress, which is encoded once."""

    output: Any


class ElipCoCa(Patched, open_clip.CoCa):
    """`open_clip.CoCa` with text-guided pruning."""

    replaces = open_clip.CoCa

    def forward(
        self,
        image: Tensor | None = None,
        text: Tensor | None = None,
        image_latent: Tensor | None = None,
        image_embs: Tensor | None = None,
        *args: Any,
        **options: Any,
    ) -> Any:
        """Encode text, then the image guided by it, then decode; the rest is as in the host."""
        ready = image_latent is not None and image_embs is not None
        call = self.elip.start(self)
        if ready or image is None or text is None or not call.needs_guide:
            return super().forward(image, text, image_latent, image_embs, *args, **options)
        encoded = EncodedText(self._encode_text(text))
        guide = project_to_vision_width(encoded.output[0], linear_maps(self.visual))
        with call.guided(guide):
            image_latent, image_embs = self._encode_image(image)
        before = thread.innermost
        thread.innermost = (self, encoded, before)
        try:
            return super().forward(image, text, image_latent, image_embs, *args, **options)
        finally:
            thread.innermost = before

    def _encode_text(self, *args: Any, **options: Any) -> Any:
        """Encode text as the host does, which asks for it twice in a guided forward."""
        encoded = find(self, EncodedText)
        return super()._encode_text(*args, **options) if encoded is None else encoded.output

    __prepare_scriptable__ = TextFirst.__prepare_scriptable__


MODELS: dict[type, type[nn.Module]] = {
    open_clip.CLIP: ElipCLIP,
    open_clip.CustomTextCLIP: ElipCustomTextCLIP,
    open_clip.CoCa: ElipCoCa,
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
    tower = _describe_tower(module.visual)
    return Description(
        module,
        tower,
        (model,),
        no_eval_by_text=LEAK,
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
