"""LAVIS' models to look through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lavis.models import CLIP
from lavis.processors.blip_processors import BlipImageEvalProcessor
from omegaconf import OmegaConf
from torch import Tensor

from elip_plugin.api import apply, find_handle
from elip_plugin.config import ElipConfig
from elip_plugin.errors import DataError, UnsupportedModelError
from elip_plugin.hosts.lavis.names import known_arch
from elip_plugin.hosts.lavis.text import inner_bert, text_pass
from elip_plugin.visualize.sight import Sight


def sight(name: str, checkpoint: str, config: ElipConfig | None) -> Sight:
    """Make a model to look through.

    Args:
        name: An arch, with or without our prefix; with a model type after a colon, such as
            "elip_blip_vqa:vqav2", else its first type.
        checkpoint: A file of weights; a LAVIS run's own also says how the model is built. ""
            for what the model type loads.
        config: What to prune; None for what the model section says.

    Returns:
        The model with its preparation.

    Raises:
        UnknownModelError: If there is no such arch or type.
        DataError: If the checkpoint cannot be read, or does not fit.
        UnsupportedModelError: If the arch reads no text by itself.
    """
    twin, kind = known_arch(name)
    state = _read(checkpoint) if checkpoint else {}
    section = (state.get("config") or {}).get("model")
    if section is None:
        section = OmegaConf.load(twin.default_config_path(kind)).model
    section = OmegaConf.create(section)
    if state:
        section.load_pretrained = section.load_finetuned = False
    torch.manual_seed(0)
    model: Any = twin.from_config(section).eval()
    if state:
        _load(model, state.get("model", state), f"{checkpoint} does not fit {name}")
    if config is not None:
        find_handle(model).remove()
        apply(model, config)
    tower = getattr(model, "visual_encoder", None)
    if tower is None:
        side, patch = model.visual.image_size, model.visual.conv1.kernel_size[0]
    else:
        side, patch = tower.patch_embed.img_size[0], tower.patch_embed.patch_size[0]
    processor = BlipImageEvalProcessor(image_size=side)
    normal = processor.normalize
    return Sight(
        name=name,
        model=model,
        prepare=processor,
        encode_text=lambda text: _encode_text(model, text),
        encode_image=model.encode_image if tower is None else tower.forward_features,
        grid=(side // patch, side // patch),
        mean=tuple(normal.mean),
        std=tuple(normal.std),
        weights=checkpoint or "the model type's own weights",
    )


def _read(checkpoint: str) -> dict[str, Any]:
    if not Path(checkpoint).is_file():
        raise DataError(f"checkpoint {checkpoint!r} is no file")
    try:
        state: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=False)
    except Exception as error:  # unpickling raises nearly anything
        raise DataError(f"{checkpoint} is not a checkpoint ({error})") from error
    return state


def _load(model: Any, weights: dict[str, Any], fault: str) -> None:
    """Load weights; LAVIS' own checkpoints lack the momentum twin, which is not looked at."""
    try:
        missing, unknown = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise DataError(f"{fault}: {error}") from error
    missing = [
        k for k in missing if "_m." not in k and "queue" not in k and "position_ids" not in k
    ]
    if missing or unknown:
        raise DataError(f"{fault}: {len(missing)} weights missing, {len(unknown)} unknown, such as "
                        f"{(missing + unknown)[:3]}")  # fmt: skip


def _encode_text(model: Any, text: str) -> Tensor:
    if isinstance(model, CLIP):
        features: Tensor = model.encode_text(model.tokenizer([text]))
        return features
    if not hasattr(model, "text_encoder"):
        raise UnsupportedModelError(f"{type(model).__name__} has no text encoder: leave --text out")
    tokens = model.tokenizer([text], return_tensors="pt").to(model.device)
    token: Tensor = text_pass(inner_bert(model.text_encoder), tokens).last_hidden_state[:, 0]
    return token
