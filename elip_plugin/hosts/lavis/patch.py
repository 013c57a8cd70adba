"""Patching LAVIS' models in place: their towers, their text encoders, themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from elip_plugin.config import ElipConfig
from elip_plugin.core.guide import carry_back
from elip_plugin.errors import ConfigError, GuideError, UnsupportedModelError
from elip_plugin.hosts.lavis.clip_towers import patch_clip_tower
from elip_plugin.hosts.lavis.text import (
    TEXT_ENCODERS,
    TextMemo,
    guide_from_class_token,
    inner_bert,
)
from elip_plugin.hosts.lavis.towers import patch_tower
from elip_plugin.patching.pruner import Pruner
from elip_plugin.patching.swap import choose, swap


def patch_model(model: Any, twin: Any, config: ElipConfig) -> Pruner:
    """Patch a whole LAVIS model in place.

    Args:
        model: A model whose class is `twin.replaces`.
        twin: Its class in `elip_plugin.hosts.lavis.models`.
        config: What to prune.

    Returns:
        The pruner of its vision tower.

    Raises:
        ConfigError: If the configuration does not suit this kind of model.
    """
    _check(model, twin, config)
    if hasattr(model, "visual"):
        pruner = patch_clip_tower(model.visual, config)
        swap(model, twin, elip=TextMemo())
        return pruner
    # All that may be refused comes before the first change.
    berts = _text_encoders(model) if twin.own_text_pass else []
    chosen = [(bert, choose(bert, TEXT_ENCODERS)) for bert in berts]
    pruner = patch_tower(model.visual_encoder, config)
    if config.prune_momentum:
        # No optimizer trains the twin: it keeps the student's time.
        patch_tower(model.visual_encoder_m, config).clock = pruner.clock
    for bert, patched in chosen:
        swap(bert, patched, elip=TextMemo())
    swap(model, twin)
    return pruner


def _text_encoders(model: Any) -> list[Any]:
    names = [n for n in ("text_encoder", "text_encoder_m") if hasattr(model, n)]
    return [inner_bert(getattr(model, name)) for name in names]


def _check(model: Any, twin: Any, config: ElipConfig) -> None:
    name = twin.replaces.__name__
    if config.eval == "text" and not twin.text_at_test:
        raise ConfigError(
            f"eval 'text' is refused for {name}: at test time its text is the answer, or is "
            "compared with all images, and an image pruned by it would leak it into the scores; "
            "use 'full' or 'image'"
        )
    if twin.guided_by == "nothing" and config.text_weight > 0:
        raise ConfigError(
            f"{name} has no text to guide its tower (its caption is the answer): set "
            f"text_weight 0 to prune by the image alone, got {config.text_weight}"
        )
    if config.prune_momentum and not hasattr(model, "visual_encoder_m"):
        raise ConfigError(f"{name} has no momentum twin here: leave prune_momentum out")
    if hasattr(model, "visual") or config.text_weight == 0:
        return
    text_width = inner_bert(model.text_encoder).config.hidden_size
    vision_width = model.visual_encoder.embed_dim
    if text_width != vision_width and not hasattr(model, "vision_proj"):
        # LAVIS' answer decoders take the tower's width, so VQA cannot do with unequal ones.
        needs_equal = hasattr(model, "text_decoder")
        other = "" if needs_equal else ", or set text_weight 0 to prune by the image alone"
        raise UnsupportedModelError(
            f"{name} has a text encoder of width {text_width}, a tower of width {vision_width} "
            "and no projection between them by which text could guide it: make the widths "
            f"equal{other}"
        )


def pruner_of(module: Any) -> Pruner:
    """Find the pruner of a patched model or bare tower.

    Args:
        module: A patched LAVIS model, or a patched vision tower of ALBEF, BLIP or CLIP.

    Returns:
        Its pruner.
    """
    tower = getattr(module, "visual_encoder", getattr(module, "visual", module))
    stack = tower.blocks[0] if hasattr(tower, "blocks") else tower.transformer
    pruner: Pruner = stack.elip
    return pruner


def to_guide(module: Any, features: Tensor) -> Tensor:
    """Turn what a user passes as guide into the tower's guide.

    Args:
        module: A patched LAVIS model or vision tower.
        features: For ALBEF and BLIP the text encoder's class token [B, text width], for CLIP
            text features [B, E], for a bare tower a ready guide [B, D].

    Returns:
        The guide [B, D], detached.

    Raises:
        GuideError: If the features have another width.
    """
    if hasattr(module, "visual"):
        expected = module.visual.proj.shape[1]
    elif hasattr(module, "text_encoder"):
        expected = inner_bert(module.text_encoder).config.hidden_size
    else:
        return features.detach()
    if features.ndim != 2 or features.shape[1] != expected:
        raise GuideError(
            f"text features have shape {tuple(features.shape)}, but this model guides by "
            f"(batch, {expected})"
        )
    with torch.no_grad():
        if hasattr(module, "visual"):
            return carry_back(features, [module.visual.proj.t()])
        projections = ("text_proj", "vision_proj")
        heads = tuple(getattr(module, name, None) for name in projections)
        return guide_from_class_token(
            features, pruner_of(module).width, None if None in heads else (heads[0], heads[1])
        )
