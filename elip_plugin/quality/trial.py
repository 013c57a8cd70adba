"""What a host gives to train and score a small model."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn


class Trial(Protocol):
    """A small model with its captions at hand."""

    model: nn.Module

    def loss(self, images: Tensor, which: Tensor, progress: float) -> Tensor:
        """Run the training forward.

        Args:
            images: Images [B, 3, side, side]; a smaller side than the model's if `coarse`.
            which: The pairs' places in the training split [B].
            progress: Share of the training that is done.

        Returns:
            The loss.
        """

    def guide(self, which: Tensor) -> Tensor:
        """Encode captions as `elip_plugin.guide` takes them, [B, E], without gradient."""

    def features(self, images: Tensor, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Encode images and captions for retrieval, each [B, E], in evaluation."""

    def scale(self) -> float:
        """Tell the model's factor on cosines."""


def make(family: str, recipe: Any, captions: list[str], others: list[str]) -> Trial:
    """Make the trial of a family.

    Args:
        family: "clip", "albef" or "blip".
        recipe: The recipe.
        captions: Those of the training split.
        others: Those of the held-out split.

    Returns:
        The trial; weights are drawn from torch's generator.
    """
    from elip_plugin.hosts.registry import load_host

    host = load_host("open_clip" if family == "clip" else "lavis")
    trial: Trial = host.trial(recipe, captions, others)
    return trial
