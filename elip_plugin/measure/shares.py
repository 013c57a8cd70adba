"""How much of a training step's arithmetic is the text tower's, which pruning leaves as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map_only

from elip_plugin.api import find_handle
from elip_plugin.hosts.base import HostModel
from elip_plugin.measure.counts import count_by_operation

PRODUCTS_OF_TOKENS = ("bmm", "baddbmm")
"""The operations of attention, whose cost grows with the square of the tokens."""


@dataclass(frozen=True)
class TextShare:
    """Operations of a pair's forward in the two towers, without pruning."""

    vision: int
    text: int
    attention: int  # of the text tower's attention alone, between its tokens
    length: int | None  # tokens of a text; None where the model makes them in its forward

    @property
    def share(self) -> float:
        """The text tower's share, 0 to 1; of a training step it is the same."""
        return self.text / (self.text + self.vision)

    def text_at(self, length: int) -> float:
        """Return the text tower's operations at another number of tokens, over those now."""
        assert self.length is not None
        ratio = length / self.length
        return ((self.text - self.attention) * ratio + self.attention * ratio**2) / self.text

    def step(self, tower: float, length: int | None = None) -> float:
        """Return the step's operations over the unpruned ones, from the tower's same ratio."""
        text = 1.0 if length is None else self.text_at(length)
        return (1 - self.share) * tower + self.share * text


def count_text_share(host_model: HostModel) -> TextShare | None:
    """Count both towers' forward; None without a text tower that reads no image, or a text."""
    device = next(host_model.model.parameters()).device
    images, texts = tree_map_only(Tensor, lambda x: x.to(device), host_model.example_batch(1))
    if texts is None or not host_model.has_text_tower:
        return None
    with find_handle(host_model.model).disabled():
        vision = count_by_operation(lambda: host_model.encode_image(images))
    text = count_by_operation(lambda: host_model.encode_text(texts))
    attention = sum(text.get(name, 0) for name in PRODUCTS_OF_TOKENS)
    return TextShare(sum(vision.values()), sum(text.values()), attention, text_length(texts))


def text_length(texts: Any) -> int | None:
    """Return the tokens of a text, of what `HostModel.example_batch` gives; None without any."""
    if isinstance(texts, Mapping):
        texts = texts["input_ids"]
    return texts.shape[1] if isinstance(texts, Tensor) else None


def describe_text_share(counted: TextShare, tower: float, option: str) -> str:
    """Describe what the text tower leaves of a plan's saving, in one or two sentences."""
    text = (
        f"The text tower has {counted.share:.0%} of the unpruned step's operations and is not "
        f"pruned, so the whole step takes {counted.step(tower):.2f} of the unpruned one."
    )
    length = counted.length or 0
    shorter = [n for n in (length // 2, length // 4) if n >= 8]
    if option and shorter:
        each = " and ".join(f"{counted.step(tower, n):.2f} ({option} {n})" for n in shorter)
        text += (
            f" Texts of {' and '.join(map(str, shorter))} tokens instead of {length} "
            f"would make that {each}; longer captions are then cut."
        )
    return text
