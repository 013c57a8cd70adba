"""Models that embed pictures and have no texts that could guide them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from elip_plugin.errors import UnsupportedModelError
from elip_plugin.hosts.anyvit import HOST
from elip_plugin.hosts.base import HostModel
from elip_plugin.patching.description import Description, Tower


@dataclass(frozen=True)
class Library:
    """What a library gives of a model.

    Attributes:
        model: The model in evaluation mode, unpruned.
        side: Pixels of a side of its images.
        preprocess: Turns a Pillow image into an image [3, side, side].
        mean: What that subtracts per color, in 0 to 1.
        std: What it then divides by.
        encode: From the model, images [B, 3, side, side] and the number of prefix tokens to
            features [B, E]; by default the model gives them.
        save: Writes the preprocessing into a folder, in the library's own files.
        save_weights: Writes the model's weights into a folder that is then a checkpoint; None where
            a checkpoint is a file of weights.
    """

    model: Any
    side: int
    preprocess: Callable[[Any], Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    encode: Callable[[Any, Tensor, int], Tensor] = lambda model, images, prefix: model(images)
    save: Callable[[Path], None] = lambda folder: None
    save_weights: Callable[[Any, Path], None] | None = None


@dataclass
class ImageModel(HostModel):
    """A model of transformers, timm or torchvision by name, at one side of its images.

    Attributes:
        library: What its library gives of it; `model` there is the one that was described.
        description: Its description at this side, checked by numbers.
        tower_path: Path of the tower in the model; "" for the model itself.
    """

    host = HOST
    library: Library = field(kw_only=True, repr=False)
    description: Description = field(kw_only=True, repr=False)
    tower_path: str = field(kw_only=True)

    def describe(self) -> Description:
        """Describe the model as when it was made: a copy is not searched again."""
        module: nn.Module = self.model
        tower: Tower = replace(self.description.tower, module=module.get_submodule(self.tower_path))
        return replace(self.description, module=module, tower=tower)

    def preprocess(self, picture: Any) -> Tensor:
        """Turn a Pillow image into an image [3, side, side], as the model's library does."""
        return self.library.preprocess(picture.convert("RGB"))

    def tokenize(self, texts: Sequence[str]) -> NoReturn:
        """Refuse texts."""
        raise no_texts(self.name)

    def example_batch(self, batch: int) -> tuple[Tensor, None]:
        """Return random images [B, 3, side, side] on the model's device, and no texts."""
        side = self.library.side
        weight = next(iter(self.model.parameters()))
        return torch.randn(batch, 3, side, side, device=weight.device), None

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode images into features [B, E]: what the model pools, or its class token."""
        return self.library.encode(self.model, images, self.description.tower.prefix)

    def encode_text(self, tokens: Any) -> NoReturn:
        """Refuse texts."""
        raise no_texts(self.name)

    def loss(self, images: Tensor, tokens: Any) -> NoReturn:
        """Refuse: what such a model is trained by is not known."""
        raise no_texts(self.name)

    def save_preprocessing(self, folder: Path) -> None:
        """Write what prepares pictures, where the library has a file for it."""
        self.library.save(folder)

    def save_weights(self, folder: Path) -> Path:
        """Write the weights, and what prepares pictures."""
        self.save_preprocessing(folder)
        if self.library.save_weights is None:
            return super().save_weights(folder)
        self.library.save_weights(self.model, folder)
        return folder


def no_texts(name: str) -> UnsupportedModelError:
    """Return the error for a use of a model's texts."""
    return UnsupportedModelError(
        f"{name} is used for its images alone: it has no texts to encode, to guide it or to be "
        "trained with; give a plan without text, such as half or embed, and no text"
    )
