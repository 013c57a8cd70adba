"""OpenCLIP's models, with the text encoded first so that it can guide the image."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import open_clip
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from elip_plugin.config import ElipConfig
from elip_plugin.errors import ConfigError, UnsupportedModelError
from elip_plugin.hosts.open_clip import towers as tower
from elip_plugin.hosts.open_clip.guide import guide_from_text, linear_maps
from elip_plugin.hosts.open_clip.support import SUPPORTED
from elip_plugin.patching.pruner import Pruner
from elip_plugin.patching.swap import Patched, choose, swap


class TextFirst(Patched):
    """Forward of a contrastive model whose image tower is guided by the text.

    The host encodes the image first. Calling its own forward for the text alone and then
    for the image alone turns the order round without a copy of its code.
    """

    if TYPE_CHECKING:
        visual: Any
        training: bool

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> Any:
        """Encode text, then the image guided by it.

        Args:
            image: Images [B, 3, height, width], or None.
            text: Token ids [B, context], or None.

        Returns:
            What the host's forward returns.
        """
        host: Callable[..., Any] = super().forward  # type: ignore[misc]
        pruner = pruner_of(self)
        guided = image is not None and text is not None and pruner.wants_guide(self.training)
        if not guided or pruner.has_guide:
            return host(image, text)
        texts = host(None, text)
        with pruner.guided(to_guide(self, _text_features(texts))):
            images = host(image, None)
        return _join(images, texts)

    def __prepare_scriptable__(self) -> NoReturn:
        """Refuse TorchScript, which would drop the pruning.

        Raises:
            UnsupportedModelError: Always.
        """
        raise UnsupportedModelError(
            "TorchScript cannot hold an ELIP model: train without --torchscript "
            "(--torchcompile works), or call find_handle(model).remove() to script the "
            "unpruned base model"
        )


def _text_features(output: Any) -> Tensor:
    return output["text_features"] if isinstance(output, dict) else output[1]


def _join(images: Any, texts: Any) -> Any:
    """Put the text features of one output into the other; both have the same form."""
    if isinstance(images, dict):
        return {**images, "text_features": texts["text_features"]}
    return (images[0], texts[1], *images[2:])


class ElipCLIP(TextFirst, open_clip.CLIP):
    """`open_clip.CLIP` with text-guided pruning."""

    replaces = open_clip.CLIP


class ElipCustomTextCLIP(TextFirst, open_clip.CustomTextCLIP):
    """`open_clip.CustomTextCLIP` with text-guided pruning."""

    replaces = open_clip.CustomTextCLIP


class ElipCoCa(Patched, open_clip.CoCa):
    """`open_clip.CoCa` with text-guided pruning."""

    replaces = open_clip.CoCa

    def forward(
        self,
        image: Tensor | None,
        text: Tensor | None = None,
        image_latent: Tensor | None = None,
        image_embs: Tensor | None = None,
        output_labels: bool = True,
    ) -> Any:
        """Encode text, then the image guided by it, then decode.

        Args:
            image: Images [B, 3, height, width].
            text: Token ids [B, context], or None.
            image_latent: As in OpenCLIP.
            image_embs: As in OpenCLIP.
            output_labels: As in OpenCLIP.

        Returns:
            What the host's forward returns.
        """
        pruner = pruner_of(self)
        ready = image_latent is not None and image_embs is not None
        if ready or text is None or pruner.has_guide or not pruner.wants_guide(self.training):
            return super().forward(image, text, image_latent, image_embs, output_labels)
        encoded = self._encode_text(text)
        with pruner.guided(to_guide(self, encoded[0])):
            image_latent, image_embs = self._encode_image(image)
        # The host encodes the text once more; for this call it gets what is there already.
        self.__dict__["_encode_text"] = lambda *_, **__: encoded
        try:
            return super().forward(image, text, image_latent, image_embs, output_labels)
        finally:
            del self.__dict__["_encode_text"]

    __prepare_scriptable__ = TextFirst.__prepare_scriptable__


MODELS: dict[type, type[nn.Module]] = {
    open_clip.CLIP: ElipCLIP,
    open_clip.CustomTextCLIP: ElipCustomTextCLIP,
    open_clip.CoCa: ElipCoCa,
}


def patch_tower(visual: Any, config: ElipConfig) -> Pruner:
    """Patch a vision tower in place, native or of timm.

    Args:
        visual: The vision tower of an OpenCLIP model.
        config: What to prune.

    Returns:
        The tower's pruner.

    Raises:
        UnsupportedModelError: Before anything is changed.
    """
    return _kind(visual).patch_tower(visual, config)


def _kind(visual: Any) -> Any:
    """The module that knows how to patch this kind of tower."""
    if type(visual) is VisionTransformer:
        return tower
    if type(visual) is TimmModel:
        from elip_plugin.hosts.open_clip import (
            timm_towers as timm_tower,  # needs a timm that has timm.layers
        )

        return timm_tower
    raise UnsupportedModelError(
        f"vision tower {type(visual).__name__} cannot be pruned: {SUPPORTED}"
    )


def patch_model(model: Any, config: ElipConfig) -> Pruner:
    """Patch a whole OpenCLIP model in place.

    Args:
        model: A `CLIP`, `CustomTextCLIP` or `CoCa` with a vision tower that can be pruned.
        config: What to prune.

    Returns:
        The pruner of its vision tower.

    Raises:
        UnsupportedModelError: Before anything is changed.
        ConfigError: If evaluation would prune by text.
    """
    patched = choose(model, MODELS)
    if config.eval == "text" and config.guide == "caption":
        raise ConfigError(
            "eval 'text' is refused for contrastive models: an image pruned by its own caption "
            "leaks the answer into retrieval and zero-shot scores; use 'full' or 'image', or "
            "guide 'batch', which knows no pairs"
        )
    if config.prune_momentum:
        raise ConfigError(
            "prune_momentum is for models with a momentum twin (ALBEF and BLIP of LAVIS); "
            f"{type(model).__name__} has none: leave it out"
        )
    _kind(model.visual).check(model.visual)
    if config.text_weight > 0:
        linear_maps(model.visual)
    pruner = patch_tower(model.visual, config)
    swap(model, patched)
    return pruner


def pruner_of(module: Any) -> Pruner:
    """Find the pruner of a patched model or bare tower.

    Args:
        module: A patched OpenCLIP model or vision tower.

    Returns:
        Its pruner.
    """
    visual = getattr(module, "visual", module)
    stack = visual.trunk if hasattr(visual, "trunk") else visual.transformer
    pruner: Pruner = stack.elip
    return pruner


def to_guide(module: Any, features: Tensor) -> Tensor:
    """Turn what a user passes as guide into the tower's guide.

    Args:
        module: A patched OpenCLIP model or vision tower.
        features: Text features [B, E] for a model, a ready guide [B, D] for a tower.

    Returns:
        The guide [B, D], detached.
    """
    if not hasattr(module, "visual"):
        return features.detach()
    return guide_from_text(features, module.visual)
