"""Building OpenCLIP's models with all that planning, measuring and drawing need."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from open_clip.model import get_model_preprocess_cfg
from torch import Tensor

from elip_plugin.config import ElipConfig
from elip_plugin.hosts.base import HostModel
from elip_plugin.hosts.building import place_for, reading, seeded
from elip_plugin.hosts.open_clip import HOST
from elip_plugin.hosts.open_clip.models import describe
from elip_plugin.hosts.open_clip.names import CONFIG_KEY, base_of, config_of
from elip_plugin.patching.install import install
from elip_plugin.patching.monkeypatch import silenced

VOCABULARY, CONTEXT = 49408, 77
"""What OpenCLIP's text configs leave out where they mean these."""


@dataclass
class OpenClipModel(HostModel):
    """An OpenCLIP model with its own preprocessing, tokenizer and loss."""

    host = HOST
    transform: Any = None  # OpenCLIP's evaluation transform
    _tokenizer: Any = field(default=None, repr=False)

    def preprocess(self, picture: Any) -> Tensor:
        """Turn a Pillow image into an image [3, height, width]."""
        return self.transform(picture)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Turn texts into token ids [B, context]."""
        if self._tokenizer is None:  # late: that of a Hugging Face text tower is downloaded
            self._tokenizer = open_clip.get_tokenizer(self.name)
        return self._tokenizer(list(texts))

    def example_batch(self, batch: int) -> tuple[Tensor, Tensor]:
        """Return random images and token ids, on the model's device."""
        device = next(self.model.parameters()).device
        size = self.model.visual.image_size
        height, width = (size, size) if isinstance(size, int) else size
        text = (open_clip.get_model_config(self.name) or {})["text_cfg"]
        shape = batch, text.get("context_length", CONTEXT)
        tokens = torch.randint(1, text.get("vocab_size", VOCABULARY), shape, device=device)
        return torch.randn(batch, 3, height, width, device=device), tokens

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode images into features [B, E]."""
        return self.model.encode_image(images)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Encode token ids into features [B, E]."""
        return self.model.encode_text(tokens, normalize=True)

    def loss(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Compute the contrastive loss of a batch."""
        out = self.model(images, tokens)
        given = [out["image_features"], out["text_features"], out["logit_scale"]]
        if "logit_bias" in out:
            return SigLipLoss()(*given, out["logit_bias"])
        return ClipLoss()(*given)

    def save_preprocessing(self, folder: Path) -> None:
        """Write `open_clip_config.json`, as on a hub: it names the tokenizer, too."""
        config = deepcopy(open_clip.get_model_config(self.name))
        size = self.model.visual.image_size
        if isinstance(size, tuple) and size[0] == size[1]:  # as configs write it
            size = size[0]
        config["vision_cfg"]["image_size"] = size
        write: Any = sys.modules["open_clip.push_to_hf_hub"]
        write.save_config_for_hf(self.model, folder / "open_clip_config.json", config)


def create(
    name: str,
    *,
    config: ElipConfig | None = None,
    checkpoint: str = "",
    image_size: int | None = None,
    device: str = "cpu",
) -> OpenClipModel:
    """Build a pruned model; `checkpoint` is a file or a tag of OpenCLIP's. See `Host.create`."""
    base = base_of(name)
    # A config's own section must not prune the model here: `config` may be another.
    options: dict[str, Any] = {CONFIG_KEY: None}
    if image_size is not None:
        options["force_image_size"] = image_size
    if config is None:
        config = config_of((open_clip.get_model_config(name) or {}).get(CONFIG_KEY))
    options["output_dict"] = True

    def build(pretrained: str | None, place: torch.device) -> Any:
        # Without a checkpoint the weights are random, which the caller says.
        with nullcontext() if pretrained else silenced(), place:
            return open_clip.create_model_and_transforms(
                base, pretrained=pretrained, device=place, **options
            )

    with seeded(), reading(checkpoint, base, partial(build, None, torch.device("meta"))):
        made = build(checkpoint or None, place_for(device))
    model: Any = made[0].to(device).eval()
    install(describe(model), config)
    normalization, visual = get_model_preprocess_cfg(model), model.visual
    grid = visual.trunk.patch_embed.grid_size if hasattr(visual, "trunk") else visual.grid_size
    return OpenClipModel(
        base,
        model,
        grid,
        tuple(normalization["mean"]),
        tuple(normalization["std"]),
        checkpoint or "random weights",
        transform=made[2],
    )
