"""The pairs in memory, and the batches of a seed, the same for every variant."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """Pictures with their captions.

    Attributes:
        pictures: The pictures [N, 3, side, side], uint8.
        captions: Their captions.
        augment: Changes pictures [B, 3, side, side], float32 from -1 to 1, in training, by what
            a generator draws.
    """

    pictures: Tensor
    captions: Sequence[str]
    augment: Callable[[Tensor, torch.Generator], Tensor]

    def __len__(self) -> int:
        """Count the pairs."""
        return len(self.captions)


def as_input(pictures: Tensor) -> Tensor:
    """Convert pictures [B, 3, side, side], uint8, to float32 from -1 to 1."""
    return pictures.contiguous().float() / 127.5 - 1


def batches(pairs: Pairs, size: int, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over the batches of a training; those of each step depend on the seed alone.

    Args:
        pairs: What to train on.
        size: Pairs per batch, B.
        steps: How many batches.
        seed: Decides the order and how pictures are changed.

    Yields:
        Pictures [B, 3, side, side], augmented, and which pairs they are [B].
    """
    per_epoch = len(pairs) // size
    for step in range(steps):
        epoch, place = divmod(step, per_epoch)
        if place == 0:
            generator = torch.Generator().manual_seed(10_000 * seed + epoch)
            order = torch.randperm(len(pairs), generator=generator)
        which = order[place * size : (place + 1) * size]
        yield pairs.augment(as_input(pairs.pictures[which]), generator), which
