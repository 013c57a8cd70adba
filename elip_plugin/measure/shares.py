"""Operations of a pair's forward in the two towers, of which pruning leaves the text tower's."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.utils._pytree import tree_map_only

from elip_plugin.api import find_handle
from elip_plugin.hosts.base import HostModel
from elip_plugin.measure.counts import count_flops
from elip_plugin.patching.install import find_pruner


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of an unpruned forward of one image and its text, as torch counts.

    A training step is counted as three forwards; of a frozen vision tower, as one.
    """

    vision: int
    text: int  # 0 where there is no text, or the text side reads the image tokens too
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

    def step(self, tower: float) -> float:
        """Return the step's operations over the unpruned ones, from the tower's same ratio."""
        return (1 - self.share) * tower + self.share


def count_operations(host_model: HostModel) -> Operations:
    """Count a forward of both towers."""
    device = next(host_model.model.parameters()).device
    images, texts = tree_map_only(Tensor, lambda x: x.to(device), host_model.example_batch(1))
    frozen = find_pruner(host_model.model).shape.frozen
    with find_handle(host_model.model).disabled():
        vision = count_flops(lambda: host_model.encode_image(images))
    if texts is None or not host_model.has_text_tower:
        return Operations(vision, 0, frozen)
    return Operations(vision, count_flops(lambda: host_model.encode_text(texts)), frozen)
