"""Adapts DINOv2 to its own unpruned features on photographs of the board that are not scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

import elip_plugin
from benchmarks.pretrained.features import to_images
from benchmarks.pretrained.plans import Row

KEPT = ("embeddings.", *(f"layer.{i}." for i in range(3)))
"""Weights that stay as they were, which takes a third of the time of a step away."""


@dataclass
class Tower:
    """What `adapt` uses of a `HostModel`."""

    model: Any


def both(tower: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the class token, and the mean of the patches' tokens."""
    tokens = tower.model(pixel_values=images).last_hidden_state
    return tokens[:, 0], tokens[:, 1:].mean(1)


def adapted(
    tower: Any,
    pixels: np.ndarray,
    part: np.ndarray,
    row: Row,
    folder: Path,
    steps: int,
    say: Callable[[str], None],
) -> Any:
    """Adapt a tower to a plan, and write it to a folder; read it where it is there.

    Args:
        tower: An unpruned model of transformers.
        pixels: All photographs.
        part: Places of those to learn from.
        row: The plan.
        folder: Of the weights.
        steps: Steps of the optimizer.
        say: Told how far it is.

    Returns:
        The tower with its new weights, unpruned.
    """  # fmt: skip
    if (folder / "config.json").exists():
        return type(tower).from_pretrained(folder, local_files_only=True).eval()
    for name, weight in tower.named_parameters():
        weight.requires_grad_(not any(kept in name for kept in KEPT))
    handle = elip_plugin.apply(tower, row.config)

    def load(places: Sequence[int]) -> Tensor:
        return to_images(pixels[part[list(places)]], row.side)

    def progress(step: int, loss: float) -> None:
        if step % 20 == 0:
            say(f"step {step} of {steps}, loss {loss:.4f}")

    state = folder.with_name(f"{folder.name}.state.pt")
    given: Any = Tower(tower)
    elip_plugin.adapt(
        given, len(part), load, steps=steps, bf16=True, state=state, encode=both, progress=progress
    )
    handle.remove()
    tower.save_pretrained(folder)
    return tower.eval()
