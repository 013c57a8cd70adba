"""A model to measure: one set of weights, and a pruned copy of its structure per variant."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from elip_plugin.api import apply
from elip_plugin.config import ElipConfig

Passes = Mapping[str, Callable[[], Tensor]]
"""What can be run: "inference" gives features in evaluation, "tower" and "step" give a loss."""

VARIANTS: dict[str, Any] = {
    "full": None,
    "paper": {"preset": "paper"},
    "fast": {"preset": "fast"},
    "evit": {"reducer": "evit"},
    "tome": {"reducer": "tome"},
    "random": {"reducer": "random"},
}
"""What is compared by default: no pruning, the presets, and the other reducers."""


@dataclass(frozen=True)
class Subject:
    """A host's model with a batch to run it on.

    Attributes:
        name: The base model's name.
        model: The unpruned model, in training mode.
        passes: Makes the passes of a model, given it.
        references: More unpruned variants by name, each a function that changes a copy.
        image_size: Pixels of an image's side (its height).
        unsuited: Variants that this model refuses.
    """

    name: str
    model: nn.Module
    passes: Callable[[nn.Module], Passes]
    references: Mapping[str, Callable[[nn.Module], None]]
    image_size: int
    unsuited: tuple[str, ...] = ()


def sharing_weights(model: nn.Module) -> nn.Module:
    """Copy a model's structure, but not its weights and buffers.

    Args:
        model: Any model.

    Returns:
        A model that can be patched on its own, with the same tensors inside.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def variant_of(subject: Subject, name: str) -> nn.Module:
    """Make a variant of a subject's model.

    Args:
        subject: The subject.
        name: One of `VARIANTS`, or of the subject's references.

    Returns:
        A copy that shares the subject's weights.
    """
    model = sharing_weights(subject.model)
    if name in subject.references:
        subject.references[name](model)
    elif VARIANTS[name] is not None:
        apply(model, ElipConfig.from_mapping({**VARIANTS[name], "eval": "image"}))
    return model


def stepped(loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Make a training step of a pass that gives a loss.

    Args:
        loss: The pass.
        optimizer: Updates the weights.

    Returns:
        The step: forward, backward, update.
    """

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss())
        optimizer.step()

    return step
