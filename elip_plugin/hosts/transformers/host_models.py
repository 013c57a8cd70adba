"""Models of transformers with their preprocessing, tokenizers, encoders and losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from elip_plugin.errors import DataError, UnsupportedModelError
from elip_plugin.hosts.base import HostModel
from elip_plugin.hosts.transformers import HOST, blip, folders
from elip_plugin.hosts.transformers.guide import feature_of, text_features
from elip_plugin.hosts.transformers.readers import Reader

LONGEST = 77
"""Tokens of a text at most: CLIP's; BERT-like encoders have positions for hundreds."""

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model")

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
    """A model of transformers; its tokenizer and image processor are those of its folder.

    Attributes:
        folder: The folder.
        processor: Its image processor; None where it has none.
    """

    host = HOST
    folder: str = field(kw_only=True)
    processor: Any = field(default=None, kw_only=True)
    _tokenizer: Any = None

    @property
    def _text_config(self) -> Any:
        return self.model.config.text_config

    def preprocess(self, picture: Any) -> Tensor:
        """Turn a Pillow image into an image [3, height, width]."""
        return folders.preprocess(self.processor, self.folder, picture.convert("RGB"))

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Turn texts into what `get_text_features` takes."""
        if self._tokenizer is None:
            self._tokenizer = _load_tokenizer(Path(self.folder))
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        tokens = self._tokenizer(list(texts), max_length=self._text_length(), **options)
        return {k: v for k, v in tokens.items() if k in ("input_ids", "attention_mask")}

    def example_batch(self, batch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return random images and token ids, on the model's device."""
        device = next(self.model.parameters()).device
        side, last = self.model.config.vision_config.image_size, self._text_config.vocab_size - 1
        # Past the usual special tokens at both ends.
        ids = torch.randint(3, last - 2, (batch, self._text_length()), device=device)
        ids[:, -1] = last  # that of CLIP's end
        tokens = {"input_ids": ids}
        if self.model.config.model_type in MASKED:
            tokens["attention_mask"] = torch.ones_like(ids)
        return torch.randn(batch, 3, side, side, device=device), tokens

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode images into features [B, E]."""
        return feature_of(self.model.get_image_features(pixel_values=images))

    def encode_text(self, tokens: dict[str, Tensor]) -> Tensor:
        """Encode tokens into features [B, E]."""
        return text_features(self.model, **tokens)

    def loss(self, images: Tensor, tokens: dict[str, Tensor]) -> Tensor:
        """Compute the contrastive loss of a batch."""
        return self.model(pixel_values=images, return_loss=True, **tokens).loss

    def save_preprocessing(self, folder: Path) -> None:
        """Write the image processor and the tokenizer of the model's folder, where it has them."""
        folders.save_processor(self.processor, folder)
        if _tokenizer_folder(Path(self.folder)) is not None:
            _load_tokenizer(Path(self.folder)).save_pretrained(folder)

    def save_weights(self, folder: Path) -> Path:
        """Write a folder of `save_pretrained`, with its preprocessing."""
        self.model.save_pretrained(folder)
        self.save_preprocessing(folder)
        return folder

    def _text_length(self) -> int:
        """Return the tokens of a text: all positions, or CLIP's number where there are hundreds."""
        text = self._text_config
        # The masked ones may count their positions from past the padding's number.
        unused = text.pad_token_id + 1 if self.model.config.model_type in MASKED else 0
        return min(text.max_position_embeddings - unused, LONGEST)


@dataclass
class ReadModel(TransformersModel):
    """A model of BLIP's families, whose text side reads the tower's tokens."""

    @property
    def _text_config(self) -> Any:
        return getattr(self.model.config, "qformer_config", self.model.config.text_config)

    def encode_image(self, images: Tensor) -> Tensor:
        """Run the vision tower: the tokens that the text side reads [B, T, D]."""
        tokens: Tensor = self.model.vision_model(pixel_values=images).last_hidden_state
        return tokens

    def encode_text(self, tokens: dict[str, Tensor]) -> Tensor:
        """Encode tokens into class tokens [B, text width]."""
        return self.guide(tokens).class_token()

    def guide(self, tokens: dict[str, Tensor]) -> Reader:
        """Return what guides the tower by texts; see `HostModel.guide`."""
        if not isinstance(self.model, blip.GuidedByText):
            raise UnsupportedModelError(
                f"{self.name} has no text to guide its tower: it is pruned by the image alone, so "
                "give no text"
            )
        return self.model.elip_read(tokens["input_ids"], tokens.get("attention_mask"))

    def loss(self, images: Tensor, tokens: dict[str, Tensor]) -> Tensor:
        """Compute the loss of a batch, whose texts are questions and answers, or captions."""
        name = type(self.model).__name__
        if name not in ("BlipForQuestionAnswering", "BlipForConditionalGeneration"):
            raise UnsupportedModelError(
                f"{self.name} is a {name}, which does not train on plain pairs: of BLIP's models "
                "BlipForQuestionAnswering and BlipForConditionalGeneration do"
            )
        return self.model(pixel_values=images, labels=tokens["input_ids"], **tokens).loss


def _tokenizer_folder(folder: Path) -> Path | None:
    """Return where a folder has a tokenizer; None for nowhere."""
    places = (folder / QFORMER_TOKENIZER, folder)
    # Without any of these files transformers 5 makes a tokenizer that knows no word.
    return next((p for p in places if any((p / name).is_file() for name in TOKENIZER_FILES)), None)


def _load_tokenizer(folder: Path) -> Any:
    place = _tokenizer_folder(folder)
    if place is None:
        raise DataError(
            f"{folder} has no tokenizer (one of {', '.join(TOKENIZER_FILES)}); save it there by "
            "tokenizer.save_pretrained"
        )
    return AutoTokenizer.from_pretrained(place, local_files_only=True)
