"""OpenCLIP's models as subjects of measurement."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import open_clip
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor, nn
from torch.nn import functional as F

from elip_plugin.hosts.open_clip.models import pruner_of, to_guide
from elip_plugin.hosts.open_clip.names import base_of
from elip_plugin.measure.subject import Passes, Subject
from elip_plugin.patching.monkeypatch import silenced
from elip_plugin.patching.swap import Patched


def subject(
    name: str,
    *,
    batch: int,
    image_size: int | None,
    device: str,
    precision: Callable[[], AbstractContextManager[Any]],
) -> Subject:
    """Make a model of random weights and a batch of random pairs.

    Args:
        name: A model name, with or without our prefix.
        batch: Pairs per batch, B.
        image_size: Pixels of a side; None for the model's own.
        device: Where to run.
        precision: Makes the context in which passes run.

    Returns:
        The subject.
    """
    torch.manual_seed(0)
    base = base_of(name)
    options = {} if image_size is None else {"force_image_size": image_size}
    with silenced():  # OpenCLIP warns of random weights, which are meant here
        model: Any = open_clip.create_model(base, output_dict=True, device=device, **options)
    height, width = _pair(model.visual.image_size)
    images = torch.randn(batch, 3, height, width, device=device)
    text = (open_clip.get_model_config(base) or {})["text_cfg"]
    shape = batch, text.get("context_length", 77)
    tokens = torch.randint(1, text.get("vocab_size", 49408), shape, device=device)
    loss = SigLipLoss() if "siglip" in base.lower() else ClipLoss()

    def passes(module: nn.Module) -> Passes:
        target: Any = module

        def contrastive() -> Tensor:
            with precision():
                out = target(images, tokens)
                given = (out["image_features"], out["text_features"], out["logit_scale"])
                bias = (out["logit_bias"],) if "logit_bias" in out else ()
                return loss(*given, *bias)

        with torch.no_grad():
            features = F.normalize(target.encode_text(tokens), dim=-1)

        def tower() -> Tensor:
            with precision():
                visual = target.visual
                if isinstance(target, Patched):
                    with _guided(target, features):
                        return _first(visual(images)).float().square().mean()
                return _first(visual(images)).float().square().mean()

        def inference() -> Tensor:
            target.eval()
            with precision():
                encoded: Tensor = target.encode_image(images)
            target.train()
            return encoded

        return {"tower": tower, "step": contrastive, "inference": inference}

    native = isinstance(model.visual, open_clip.transformer.VisionTransformer)
    return Subject(base, model.train(), passes, {}, height, () if native else ("tome",))


def _guided(model: Any, text: Tensor) -> AbstractContextManager[None]:
    return pruner_of(model).guided(to_guide(model, text))


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
