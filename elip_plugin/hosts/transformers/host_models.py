"""Models of transformers with their preprocessing, tokenizers, encoders and losses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from elip_plugin.errors import DataError, UnsupportedModelError
from elip_plugin.hosts.base import HostModel
from elip_plugin.hosts.transformers import HOST, blip
from elip_plugin.hosts.transformers.guide import feature_of, text_features
from elip_plugin.hosts.transformers.readers import Reader

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

QFORMER_TOKENIZER = "qformer_tokenizer"
"""Folder, within a model's, of the tokenizer whose texts a Q-Former reads beside another."""

NO_EXPORT = (
    "its text side reads the tower's tokens, and exported ones have not been compared with those; "
    "models that embed images can be exported"
)


@dataclass
class TransformersModel(HostModel):
    """A model of transformers; its tokenizer and normalization are those of its folder.

    Attributes:
        folder: The folder with its tokenizer; "" for a model without weights, whose texts become
            stand-in tokens.
        squares: Whether pictures are resized to a square, as SigLIP's are; else the shorter side is
            resized, and the middle of the longer one is taken.
    """

    host = HOST
    folder: str = ""
    squares: bool = False
    _tokenizer: Any = None

    @property
    def _config(self) -> Any:
        return self.model.config

    @property
    def _text_config(self) -> Any:
        return self._config.text_config

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
            return self._stand_in_tokens(texts)
        if self._tokenizer is None:
            self._tokenizer = _load_tokenizer(Path(self.folder))
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        tokens = self._tokenizer(list(texts), max_length=self._text_length(), **options)
        return {k: v for k, v in tokens.items() if k in ("input_ids", "attention_mask")}

    def example_batch(self, batch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return random images and stand-in tokens, on the model's device."""
        device = next(self.model.parameters()).device
        side = self._config.vision_config.image_size
        texts = [f"example {i}" for i in range(batch)]
        tokens = {k: v.to(device) for k, v in self._stand_in_tokens(texts).items()}
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

    def save_weights(self, folder: Path) -> Path:
        """Write a folder of `save_pretrained`, with its preprocessing."""
        self.model.save_pretrained(folder)
        self.save_preprocessing(folder)
        return folder

    def checkpoint(self) -> None:
        """Turn gradient checkpointing on."""
        model: Any = self.model
        model.gradient_checkpointing_enable({"use_reentrant": False})

    def _stand_in_tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Make tokens from the bytes of texts, for models without weights."""
        length, vocabulary = self._text_length(), self._text_config.vocab_size
        low, high = 3, vocabulary - 3  # past the usual special tokens at both ends
        rows = []
        for given in texts:
            ids = [low + byte % (high - low) for byte in given.encode()][: length - 1]
            rows.append(ids + [vocabulary - 1] * (length - len(ids)))
        tokens = {"input_ids": torch.tensor(rows)}
        if self._config.model_type in MASKED:
            tokens["attention_mask"] = torch.ones_like(tokens["input_ids"])
        return tokens

    def _text_length(self) -> int:
        """Return the tokens of a text: all positions, or CLIP's number where there are hundreds."""
        text = self._text_config
        # The masked ones may count their positions from past the padding's number.
        unused = text.pad_token_id + 1 if self._config.model_type in MASKED else 0
        return min(text.max_position_embeddings - unused, LONGEST)


@dataclass
class ReadModel(TransformersModel):
    """A model of BLIP's families, whose text side reads the tower's tokens."""

    @property
    def _text_config(self) -> Any:
        return getattr(self._config, "qformer_config", self._config.text_config)

    def encode_image(self, images: Tensor) -> Tensor:
        """Run the vision tower: the tokens that the text side reads [B, T, D]."""
        model: Any = self.model
        tokens: Tensor = model.vision_model(pixel_values=images).last_hidden_state
        return tokens

    def encode_text(self, tokens: dict[str, Tensor]) -> Tensor:
        """Encode tokens into class tokens [B, text width]."""
        return self.guide(tokens).class_token()

    def guide(self, tokens: dict[str, Tensor]) -> Reader:
        """Return what guides the tower by texts; see `HostModel.guide`."""
        model: Any = self.model
        if not isinstance(model, blip.GuidedByText):
            raise UnsupportedModelError(
                f"{self.name} has no text to guide its tower: it is pruned by the image alone, so "
                "give no text"
            )
        return model.elip_read(tokens["input_ids"], tokens.get("attention_mask"))

    def loss(self, images: Tensor, tokens: dict[str, Tensor]) -> Tensor:
        """Compute the loss of a batch, whose texts are questions and answers, or captions."""
        name = type(self.model).__name__
        if name not in ("BlipForQuestionAnswering", "BlipForConditionalGeneration"):
            raise UnsupportedModelError(
                f"{self.name} is a {name}, which does not train on plain pairs: of BLIP's models "
                "BlipForQuestionAnswering and BlipForConditionalGeneration do"
            )
        return self.model(pixel_values=images, labels=tokens["input_ids"], **tokens).loss


def _load_tokenizer(folder: Path) -> Any:
    if (folder / QFORMER_TOKENIZER).is_dir():
        folder = folder / QFORMER_TOKENIZER
    # Without any of these files transformers 5 makes a tokenizer that knows no word.
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise DataError(
            f"{folder} has no tokenizer (one of {', '.join(TOKENIZER_FILES)}); save it there by "
            "tokenizer.save_pretrained"
        )
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
