"""Operations of a pair's forward in the two towers, of which pruning leaves the text tower's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map_only

from elip_plugin.api import find_handle
from elip_plugin.hosts.base import HostModel
from elip_plugin.measure.counts import count_by_operation
from elip_plugin.patching.install import find_pruner

PRODUCTS_OF_TOKENS = ("bmm", "baddbmm")
"""The operations of attention, whose cost grows with the square of the tokens."""


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of an unpruned forward of one image and its text, as torch counts.

    A training step is counted as three forwards; of a frozen vision tower, as one.
    """

    vision: int
    text: int  # 0 where there is no text, or the text side reads the image tokens too
    attention: int  # of the text tower's attention alone, between its tokens
    length: int | None  # tokens of a text; None where the model makes them in its forward
    frozen: bool = False

    @property
    def vision_step(self) -> int:
        """A training step of the vision tower."""
        return self.vision * (1 if self.frozen else 3)

    @property
    def text_step(self) -> int:
        """A training step of the text tower."""
        return self.text * 3

    @property
    def share(self) -> float:
        """The text tower's share of the training step, 0 to 1."""
        return self.text_step / (self.text_step + self.vision_step)

    def text_at(self, length: int) -> float:
        """Return the text tower's operations at another number of tokens, over those now."""
        assert self.length is not None
        ratio = length / self.length
        return ((self.text - self.attention) * ratio + self.attention * ratio**2) / self.text

    def step(self, tower: float, length: int | None = None) -> float:
        """Return the step's operations over the unpruned ones, from the tower's same ratio."""
        text = 1.0 if length is None else self.text_at(length)
        return (1 - self.share) * tower + self.share * text


def count_operations(host_model: HostModel) -> Operations:
    """Count a forward of both towers."""
    device = next(host_model.model.parameters()).device
    images, texts = tree_map_only(Tensor, lambda x: x.to(device), host_model.example_batch(1))
    frozen = find_pruner(host_model.model).shape.frozen
    with find_handle(host_model.model).disabled():
        vision = sum(count_by_operation(lambda: host_model.encode_image(images)).values())
    if texts is None or not host_model.has_text_tower:
        return Operations(vision, 0, 0, None, frozen)
    text = count_by_operation(lambda: host_model.encode_text(texts))
    attention = sum(text.get(name, 0) for name in PRODUCTS_OF_TOKENS)
    return Operations(vision, sum(text.values()), attention, text_length(texts), frozen)


def text_length(texts: Any) -> int | None:
    """Return the tokens of a text, of what `HostModel.example_batch` gives; None without any."""
    if isinstance(texts, Mapping):
        texts = texts["input_ids"]
    return texts.shape[1] if isinstance(texts, Tensor) else None


def describe_text_share(counted: Operations, tower: float, option: str) -> str:
    """Describe what the text tower leaves of a plan's saving, in one or two sentences."""
    text = (
        f"The text tower, which is not pruned, has {counted.share:.0%} of the unpruned step's "
        "operations."
    )
    length = counted.length or 0
    shorter = [n for n in (length // 2, length // 4) if n >= 8]
    if option and shorter:
        steps = " and ".join(f"{counted.step(tower, n):.2f} ({option} {n})" for n in shorter)
        text += (
            f" Texts of {' and '.join(map(str, shorter))} tokens instead of {length} would make "
            f"the whole step {steps}; longer captions are then cut."
        )
    return text
