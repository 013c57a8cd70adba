"""The small models of the study: what each family provides to be trained and scored."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from benchmarks.quality.pairs import Pairs
from benchmarks.quality.recipe import Recipe


class StudyModel(Protocol):
    """A small model with the captions of its training split."""

    model: nn.Module

    def loss(self, images: Tensor, which: Tensor, done: float) -> Tensor:
        """Compute the training loss.

        Args:
            images: Images [B, 3, side, side]; a smaller side than the model's if `coarse`.
            which: Indices of the pairs in the training split [B].
            done: Share of the training that is done.

        Returns:
            The loss.
        """

    def guide(self, which: Tensor) -> Tensor:
        """Encode captions as `elip_plugin.guide` takes them, [B, E], without gradient."""

    def features(self, images: Tensor, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Encode images and captions for retrieval, each [B, E], in evaluation."""

    def scale(self) -> float:
        """Return the model's factor on cosines."""


def create(recipe: Recipe, train: Pairs, held_out: Pairs) -> StudyModel:
    """Build the model of a recipe.

    Args:
        recipe: Its family and sizes.
        train: The training split, whose captions the model holds.
        held_out: The held-out split.

    Returns:
        The model, unpruned; weights are drawn from torch's generator.
    """
    if recipe.family == "clip":
        from benchmarks.quality.models_open_clip import ClipModel

        return ClipModel(recipe, train, held_out)
    from benchmarks.quality.models_lavis import PretrainModel

    return PretrainModel(recipe, train)
