"""Build LAVIS' pruned models: from a model section, or by name with all that measuring needs."""

from __future__ import annotations

import string
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lavis.models import CLIP
from lavis.models.clip_models.model import _MODEL_CONFIGS
from lavis.processors.blip_processors import BlipImageEvalProcessor
from omegaconf import OmegaConf
from torch import Tensor

from elip_plugin.config import RECOMMENDED, ElipConfig
from elip_plugin.errors import DataError, UnsupportedModelError
from elip_plugin.hosts.base import HostModel
from elip_plugin.hosts.building import place_for, seeded
from elip_plugin.hosts.lavis import HOST
from elip_plugin.hosts.lavis.build import SECTION, from_config
from elip_plugin.hosts.lavis.guide import CaptionGuide, is_read_by_text
from elip_plugin.hosts.lavis.models import ARCHS
from elip_plugin.hosts.lavis.names import PREFIX
from elip_plugin.hosts.lavis.towers import fuse_attention
from elip_plugin.patching.checkpoints import load_checkpoint

EXAMPLE = "a photograph of a cat on a sofa"
PRETRAINED = "pretrained"
"""As a checkpoint: the weights that the model type names."""

BERT_WORDS = 30524
"""Vocabulary of LAVIS' text encoders, by which a language head costs what it costs there."""

NO_EXPORT = (
    "it is a model of LAVIS, whose preprocessing is code named by a yaml file, with no format that "
    "other programs read; models of OpenCLIP and transformers, BLIP's included, can be exported"
)


@dataclass
class LavisModel(HostModel):
    """A LAVIS model with its own preprocessing, tokenizer and losses."""

    host = HOST
    processor: Any = None  # LAVIS' evaluation processor

    def preprocess(self, picture: Any) -> Tensor:
        """Turn a Pillow image into an image [3, height, width]."""
        return self.processor(picture)

    def tokenize(self, texts: Sequence[str]) -> list[str]:
        """Return the texts: LAVIS' models tokenize in their forward."""
        return list(texts)

    def example_batch(self, batch: int) -> tuple[Tensor, list[str]]:
        """Return random images and texts, on the model's device."""
        device = next(self.model.parameters()).device
        side = self.processor.transform.transforms[0].size[0]
        return torch.randn(batch, 3, side, side, device=device), [EXAMPLE] * batch

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode images into features [B, E] (CLIP), or the tokens that LAVIS' text side reads."""
        model = self.model
        if isinstance(model, CLIP):
            return model.encode_image(images)
        return model.visual_encoder.forward_features(images)

    def encode_text(self, tokens: list[str]) -> Tensor:
        """Encode texts into features [B, E] (CLIP), or class tokens [B, text width]."""
        model = self.model
        if not isinstance(model, CLIP) and not hasattr(model, "text_encoder"):
            raise UnsupportedModelError(
                f"{self.name} has no text encoder: it is pruned by the image alone, so give no text"
            )
        features: Tensor = model.elip_encode(model.tokenizer, tokens, "")[2]
        return features

    def guide(self, tokens: list[str]) -> Any:
        """Compute what guides the tower; see `HostModel.guide`."""
        if is_read_by_text(self.model):
            return CaptionGuide(self.model, self.model.tokenizer, tokens)
        return super().guide(tokens)

    def loss(self, images: Tensor, tokens: list[str]) -> Tensor:
        """Compute the sum of the losses of a batch of image-text pairs."""
        samples = {
            "image": images,
            "text_input": list(tokens),
            "image_id": torch.arange(len(images), device=images.device),
            **dict.fromkeys(("epoch", "iters"), 0),
            "num_iters_per_epoch": 1,
        }
        if not self.name.endswith(("_pretrain", "_retrieval", "caption", "clip")):
            raise UnsupportedModelError(
                f"{self.name} does not train on plain pairs: of LAVIS' archs, albef_pretrain, "
                "blip_pretrain, albef_retrieval, blip_retrieval, blip_caption and clip do"
            )
        return self.model(samples)["loss"]


def create(
    name: str,
    *,
    config: ElipConfig | None = None,
    checkpoint: str = "",
    image_size: int | None = None,
    device: str = "cpu",
) -> LavisModel:
    """Build a pruned model; checkpoint "pretrained" is the type's own. See `Host.create`."""
    arch, _, kind = name.partition(":")
    patched = ARCHS[arch.removeprefix(PREFIX)]
    kind = kind or next(iter(patched.PRETRAINED_MODEL_CONFIG_DICT))
    saved = None if checkpoint in ("", PRETRAINED) else load_checkpoint(checkpoint)
    section = OmegaConf.create(((saved or {}).get("config") or {}).get("model") or {})
    if not section:
        section = OmegaConf.load(patched.default_config_path(kind)).model
    if not arch.startswith(PREFIX) and SECTION not in section and isinstance(patched.default, str):
        config = config or ElipConfig.preset(RECOMMENDED)
    if image_size is not None:
        section.image_size = image_size
    quiet = redirect_stdout(StringIO())  # BLIP prints the name of each weight that it ties
    with TemporaryDirectory() as folder, seeded(), place_for(device), quiet:
        if checkpoint != PRETRAINED:
            section = _offline(section, patched, kind, folder if saved is None else "")
        model: Any = from_config(patched, section, config).eval()
    if device != "meta":
        model.to(device)
    if saved is not None:
        _load(model, saved.get("model", saved), f"{checkpoint} does not fit {name}")
    tower = getattr(model, "visual_encoder", None)
    if tower is None:
        side, patch = model.visual.image_size, model.visual.conv1.kernel_size[0]
    else:
        side, patch = tower.patch_embed.img_size[0], tower.patch_embed.patch_size[0]
    processor = BlipImageEvalProcessor(image_size=side)
    return LavisModel(
        arch.removeprefix(PREFIX),
        model,
        (side // patch, side // patch),
        tuple(processor.normalize.mean),
        tuple(processor.normalize.std),
        checkpoint or "random weights",
        {} if tower is None else {"fused": fuse_attention},
        processor,
        has_text_tower=tower is None,  # CLIP's; that of the others reads images too
        no_export=NO_EXPORT,
    )


def _offline(section: Any, patched: Any, kind: str, folder: str) -> Any:
    """Return a model section that fetches nothing.

    If a folder is given, the model needs no vocabulary of its own either: one is written there.
    """
    if hasattr(patched, "encode_image"):
        sizes = OmegaConf.create(section.get("clip") or _MODEL_CONFIGS[kind.replace("/", "-")])
        if "image_size" in section:
            sizes.vision_cfg.image_size = section.image_size
        return OmegaConf.merge(section, {"clip": sizes, "pretrained": None})
    ours: dict[str, Any] = {
        "init": "random",
        "load_finetuned": False,
        "pretrained": None,
    }
    if folder:
        vocabulary = Path(folder) / "vocab.txt"
        vocabulary.write_text(_vocabulary())
        ours["tokenizer"] = str(vocabulary)
        if "tokenizer" not in section:
            ours["bert"] = {"vocab_size": BERT_WORDS}
        # A batch must divide the queue, whatever the batch.
        ours["queue_size"] = 65536
        # LAVIS' config of blip_classification leaves it open.
        ours["num_classes"] = max(2, section.get("num_classes", 2))
    return OmegaConf.merge(section, ours)


def _vocabulary() -> str:
    """Return a small WordPiece vocabulary: the characters of any English text, and the example."""
    characters = sorted(string.ascii_lowercase + string.digits + string.punctuation)
    words = sorted({word for word in EXAMPLE.split() if len(word) > 1})
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    return "\n".join([*special, *characters, *(f"##{char}" for char in characters), *words])


def _load(model: Any, weights: dict[str, Any], fault: str) -> None:
    """Load weights; LAVIS' own checkpoints lack the momentum encoder, which is not needed here."""
    try:
        missing, unknown = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise DataError(f"{fault}: {error}") from error
    missing = [k for k in missing if not any(p in k for p in ("_m.", "queue", "position_ids"))]
    if missing or unknown:
        raise DataError(
            f"{fault}: {len(missing)} weights missing, {len(unknown)} unknown, such as "
            f"{(missing + unknown)[:3]}"
        )
