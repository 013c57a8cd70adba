"""The pairs in memory, and the batches of a seed, the same for every variant."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.quality.recipe import SIDE

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Pairs:
    """Pictures with their captions.

    Attributes:
        pictures: The pictures, as Pillow's images.
        captions: Their captions.
        vocabulary: WordPiece vocabulary of the training captions, for BERT text towers.
    """

    pictures: Sequence[Any]
    captions: Sequence[str]
    vocabulary: Path

    def __len__(self) -> int:
        """Count the pairs."""
        return len(self.captions)


def read_pairs(folder: Path, split: str, most: int | None = None) -> Pairs:
    """Read a split that `write_openmoji` wrote.

    Args:
        folder: Where it was written.
        split: "train" or "held_out".
        most: Most pairs to read.

    Returns:
        The pairs, decoded.
    """
    from PIL import Image

    rows = json.loads((folder / f"{split}.json").read_text(encoding="utf-8"))[:most]
    pictures = []
    for row in rows:
        with Image.open(folder / row["image"]) as image:
            pictures.append(image.convert("RGB"))
    return Pairs(pictures, [row["caption"] for row in rows], folder / "vocab.txt")


def whole(pairs: Pairs) -> Tensor:
    """Stack all pictures as images, uncropped.

    Args:
        pairs: The pairs.

    Returns:
        Images [N, 3, 64, 64].
    """
    return torch.stack([_transform(train=False)(picture) for picture in pairs.pictures])


def batches(pairs: Pairs, size: int, epochs: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over the batches of a training; they depend on the seed alone.

    Args:
        pairs: What to train on.
        size: Pairs per batch, B.
        epochs: Passes over the pairs.
        seed: Decides order and crops.

    Yields:
        Images [B, 3, 64, 64], slightly cropped, and which pairs they are [B].
    """
    transform = _transform(train=True)
    for epoch in range(epochs):
        own = torch.Generator().manual_seed(1000 * seed + epoch)
        order = torch.randperm(len(pairs), generator=own)
        for start in range(0, len(pairs) - size + 1, size):
            which = order[start : start + size]
            with torch.random.fork_rng(devices=[]):  # a variant may draw as well
                torch.manual_seed(int(torch.randint(2**31, (), generator=own)))
                images = torch.stack([transform(pairs.pictures[i]) for i in which.tolist()])
            yield images, which


def _transform(train: bool) -> Any:
    from torchvision import transforms

    crop = [transforms.RandomResizedCrop(SIDE, scale=(0.8, 1.0), antialias=True)] if train else []
    return transforms.Compose([*crop, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
