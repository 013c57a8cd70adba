"""Build the models of transformers with all that planning, measuring and drawing need."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPConfig, SiglipConfig
from transformers.image_utils import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from elip_plugin.config import DEFAULT_PRESET, ElipConfig
from elip_plugin.errors import ConfigError, DataError
from elip_plugin.hosts.base import HostModel, reading, seeded
from elip_plugin.hosts.transformers.guide import feature_of, text_features
from elip_plugin.hosts.transformers.models import describe
from elip_plugin.hosts.transformers.shapes import CONFIG_KEY, PREFIX, SHAPES, read_config
from elip_plugin.patching.install import install
from elip_plugin.patching.monkeypatch import silenced

LONGEST = 77
"""Tokens of a text at most: CLIP's; BERT-like encoders have positions for hundreds."""

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model")

PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
)
"""What else a tokenizer or an image processor may be saved in."""

MASKED = ("altclip", "chinese_clip")
"""Families whose text encoder needs to know which tokens are padding."""


@dataclass
class TransformersModel(HostModel):
    """A model of transformers; its tokenizer and normalisation are those of its folder.

    Attributes:
        folder: The folder with its tokenizer; "" for a model without weights, whose texts become
            stand-in tokens.
        squares: Whether pictures are resized to a square, as SigLIP's are; else the shorter side is
            resized, and the middle of the longer one is taken.
    """

    folder: str = ""
    squares: bool = False
    _tokenizer: Any = None

    @property
    def _config(self) -> Any:
        return self.model.config

    def preprocess(self, picture: Any) -> Tensor:
        """Turn a Pillow image into an image [3, height, width]."""
        side = self._config.vision_config.image_size
        shortest = min(picture.size)
        width, height = (
            side if self.squares else length * side // shortest for length in picture.size
        )
        left, top = (width - side) // 2, (height - side) // 2
        resized = picture.convert("RGB").resize((width, height), 3)  # bicubic
        cropped = resized.crop((left, top, left + side, top + side))
        pixels = torch.frombuffer(bytearray(cropped.tobytes()), dtype=torch.uint8)
        image = pixels.view(side, side, 3).permute(2, 0, 1) / 255
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (image - mean) / std

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Turn texts into what `get_text_features` takes."""
        if not self.folder:
            return _stand_in_tokens(texts, self._config)
        if self._tokenizer is None:
            self._tokenizer = _load_tokenizer(self.folder)
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        tokens = self._tokenizer(list(texts), max_length=_text_length(self._config), **options)
        return {k: v for k, v in tokens.items() if k in ("input_ids", "attention_mask")}

    def example_batch(self, batch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return random images and stand-in tokens, on the model's device."""
        device = next(self.model.parameters()).device
        side = self._config.vision_config.image_size
        texts = [f"example {i}" for i in range(batch)]
        tokens = {k: v.to(device) for k, v in _stand_in_tokens(texts, self._config).items()}
        return torch.randn(batch, 3, side, side, device=device), tokens

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode images into features [B, E]."""
        model: Any = self.model
        return feature_of(model.get_image_features(pixel_values=images))

    def encode_text(self, tokens: dict[str, Tensor]) -> Tensor:
        """Encode tokens into features [B, E]."""
        return text_features(self.model, **tokens)

    def loss(self, images: Tensor, tokens: dict[str, Tensor]) -> Tensor:
        """Compute the contrastive loss of a batch."""
        return self.model(pixel_values=images, return_loss=True, **tokens).loss

    def save_preprocessing(self, folder: Path) -> None:
        """Write `preprocessor_config.json`, and copy the tokenizer of the model's folder."""
        source = Path(self.folder)
        names = (*TOKENIZER_FILES, *PROCESSOR_FILES) if self.folder else ()
        for name in names:
            if (source / name).is_file():
                shutil.copy(source / name, folder / name)
        saved, side = folder / "preprocessor_config.json", self._config.vision_config.image_size
        if saved.is_file():
            return
        square = {"height": side, "width": side}
        values = {
            "image_processor_type": f"{'Siglip' if self.squares else 'CLIP'}ImageProcessor",
            "size": square if self.squares else {"shortest_edge": side},
            "resample": 3,  # bicubic
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
        values |= {} if self.squares else {"do_center_crop": True, "crop_size": square}
        saved.write_text(json.dumps(values, indent=1) + "\n")

    def checkpoint(self) -> None:
        """Turn gradient checkpointing on."""
        model: Any = self.model
        model.gradient_checkpointing_enable({"use_reentrant": False})


def _stand_in_tokens(texts: Sequence[str], config: Any) -> dict[str, Tensor]:
    """Make tokens from the bytes of texts, for models without weights."""
    length, vocabulary = _text_length(config), config.text_config.vocab_size
    low, high = 3, vocabulary - 3  # past the usual special tokens at both ends
    rows = []
    for given in texts:
        ids = [low + byte % (high - low) for byte in given.encode()][: length - 1]
        rows.append(ids + [vocabulary - 1] * (length - len(ids)))
    tokens = {"input_ids": torch.tensor(rows)}
    if config.model_type in MASKED:
        tokens["attention_mask"] = torch.ones_like(tokens["input_ids"])
    return tokens


def _text_length(config: Any) -> int:
    """Return the tokens of a text: all positions, or CLIP's number where there are hundreds."""
    text = config.text_config
    # The masked ones may count their positions from past the padding's number.
    unused = text.pad_token_id + 1 if config.model_type in MASKED else 0
    return min(text.max_position_embeddings - unused, LONGEST)


def _load_tokenizer(folder: str) -> Any:
    # Without any of these files transformers 5 makes a tokenizer that knows no word.
    if not any((Path(folder) / name).is_file() for name in TOKENIZER_FILES):
        raise DataError(
            f"{folder} has no tokenizer (one of {', '.join(TOKENIZER_FILES)}); save it there by "
            "tokenizer.save_pretrained"
        )
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def create(
    name: str,
    *,
    config: ElipConfig | None = None,
    checkpoint: str = "",
    image_size: int | None = None,
    device: str = "cpu",
) -> TransformersModel:
    """Build a pruned model; `checkpoint` is a folder of `save_pretrained`. See `Host.create`."""
    base = name.removeprefix(PREFIX)
    if checkpoint and image_size is not None:
        raise ConfigError(
            f"image_size {image_size} with the weights of {checkpoint}: transformers has their "
            "positions at one size; leave one of the two out"
        )
    if checkpoint and not Path(checkpoint).is_dir():
        raise DataError(
            f"checkpoint {checkpoint!r} is no folder; transformers' are folders of save_pretrained"
        )
    folder = checkpoint or ("" if base in SHAPES else base)
    section = read_config(folder).get(CONFIG_KEY) if folder else None
    if config is None:
        config = ElipConfig.from_mapping(DEFAULT_PRESET if section is None else section)
    model = _load(checkpoint).to(device) if checkpoint else _build(base, folder, image_size, device)
    model = model.eval()
    install(describe(model), config)
    vision = model.config.vision_config
    side = vision.image_size // vision.patch_size
    options = _preprocessing(folder, model.config.model_type)
    return TransformersModel(
        base,
        model,
        (side, side),
        tuple(options["image_mean"]),
        tuple(options["image_std"]),
        checkpoint or "random weights",
        folder=checkpoint,
        squares="height" in options["size"],
    )


def _build(base: str, folder: str, image_size: int | None, device: str) -> Any:
    """Build a model with random weights, from a folder's config or the table."""
    if folder:
        host_config = AutoConfig.from_pretrained(folder, local_files_only=True)
    else:
        host_config = _config_of(base)
    if image_size is not None:
        host_config.vision_config.image_size = image_size
    with seeded(device), silenced(), torch.device(device):
        return AutoModel.from_config(copy.deepcopy(host_config))


def _config_of(base: str) -> Any:
    shape = SHAPES[base]
    vision, text = shape.vision._asdict(), shape.text._asdict()
    vision |= {"patch_size": shape.patch_size, "image_size": shape.image_size}
    text["vocab_size"] = shape.vocab_size
    if shape.model_type == "siglip":
        return SiglipConfig(vision_config=vision, text_config=text)
    width = shape.text.hidden_size
    options = {"vision_config": vision, "text_config": text, "projection_dim": width}
    return CLIPConfig(**options)


def _load(checkpoint: str) -> Any:
    with reading(checkpoint, "transformers", partial(_build, "", checkpoint, None, "meta")):
        model, info = AutoModel.from_pretrained(
            checkpoint, local_files_only=True, output_loading_info=True
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise DataError(
            f"checkpoint {checkpoint!r} lacks {len(missing)} of the model's weights, e.g. "
            f"{missing[:3]}"
        )
    return model


def _preprocessing(folder: str, model_type: str) -> dict[str, Any]:
    """Return how pictures become images: as the folder says, else as its family does."""
    options: dict[str, Any] = {"image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD}
    options["size"] = {"shortest_edge": 0}  # the length is that of the model's images
    if model_type == "siglip":
        options = {"image_mean": IMAGENET_STANDARD_MEAN, "image_std": IMAGENET_STANDARD_STD}
        options["size"] = {"height": 0, "width": 0}
    path = Path(folder) / "preprocessor_config.json"
    saved = json.loads(path.read_text()) if folder and path.is_file() else {}
    if not isinstance(
        saved.get("size"), dict
    ):  # a number, in old files, means what the family does
        saved.pop("size", None)
    return options | saved
