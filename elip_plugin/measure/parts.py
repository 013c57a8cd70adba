"""Where the time of a training step goes, and what loading a batch takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from elip_plugin.errors import DataError
from elip_plugin.hosts.base import HostModel
from elip_plugin.measure.speed import Row, time_in_turn, timed
from elip_plugin.measure.variants import PASSES, UNPRUNED, Variant, make_variants
from elip_plugin.pictures import Item


@dataclass(frozen=True)
class Parts:
    """Seconds of a training step that pruning does not change, each measured apart."""

    text: float | None  # forward and backward of the tower; None where it reads the images too
    optimizer: float
    loader: float | None = None  # a batch by all workers together; None without data
    workers: int = 0


def measure_parts(
    host_model: HostModel,
    *,
    batch: int,
    precision: str = "fp32",
    rounds: int = 7,
    loader: tuple[float, int] | None = None,
) -> Parts:
    """Measure what a step takes besides the vision tower; `loader` is what loading was found."""
    (variant,) = make_variants(host_model, [UNPRUNED], batch=batch, precision=precision).values()
    weights = list(host_model.model.parameters())
    optimizer = torch.optim.AdamW(weights, lr=1e-6)
    PASSES["step"].run(variant, optimizer)  # leaves the gradients that are then applied
    steps: dict[str, Callable[[], object]] = {"optimizer": timed(optimizer.step)}
    if host_model.has_text_tower:
        steps["text"] = timed(partial(_run_text, variant, weights))
    seconds = {name: statistics.median(t) for name, t in time_in_turn(steps, rounds).items()}
    text = 0.0 if variant.tokens is None else seconds.get("text")
    return Parts(text, seconds["optimizer"], *(loader or ()))


class Pictures(Dataset[Tensor]):
    """Pictures that are read and prepared, from the first again after the last.

    Args:
        items: Where they are.
        preprocess: Makes an image of a picture.
        count: How many are wanted.
    """

    def __init__(
        self, items: Sequence[Item], preprocess: Callable[[Any], Tensor], count: int
    ) -> None:
        self.items, self.preprocess, self.count = items, preprocess, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> Tensor:
        item = self.items[place % len(self.items)]
        try:
            picture = item.read()
        except Exception as error:  # Pillow's readers raise nearly anything on broken files
            raise DataError(f"--data: {item.name} cannot be read ({error})") from error
        return self.preprocess(picture)


def time_loading(
    items: Sequence[Item],
    preprocess: Callable[[Any], Tensor],
    batch: int,
    workers: int,
    rounds: int,
) -> tuple[float, int]:
    """Time the loading of batches as in a training, with the workers at work on the next ones.

    Args:
        items: The pictures.
        preprocess: Makes an image of a picture.
        batch: Pictures per batch.
        workers: Processes.
        rounds: Batches of each worker that count.

    Returns:
        Seconds from one batch to the next, and the workers.

    Raises:
        DataError: If a picture cannot be read.
    """
    first = Pictures(items, preprocess, 1)[0]  # what cannot be read at all is said at once
    assert first.ndim == 3
    ahead = 2 * workers  # batches that are ready when the first one is taken
    count = batch * (ahead + workers * rounds)
    batches = iter(
        DataLoader(Pictures(items, preprocess, count), batch_size=batch, num_workers=workers)
    )
    for _ in range(ahead):
        next(batches)
    start = time.perf_counter()
    for _ in batches:
        pass
    return (time.perf_counter() - start) / (workers * rounds), workers


def _run_text(variant: Variant, weights: Sequence[torch.Tensor]) -> None:
    # Not added to the gradients, which the optimizer is timed with.
    trained = [weight for weight in weights if weight.requires_grad]
    torch.autograd.grad(variant.text_loss(), trained, allow_unused=True)


def describe_parts(rows: Sequence[Row], parts: Parts) -> list[str]:
    """Describe the shares of the first variant's step, and what loading takes."""
    seconds = {(row.measured, row.variant): row.seconds for row in rows}
    first = rows[0].variant
    if not {("tower", first), ("step", first)} <= {*seconds}:
        return []
    step, vision = seconds["step", first], seconds["tower", first]
    rest = step - vision - parts.optimizer - (parts.text or 0)
    text = [("text tower", parts.text)] if parts.text is not None else []
    others = (
        "loss and all else" if text else "text side and losses, which read the image tokens too"
    )
    shares = [("vision tower", vision), *text, ("optimizer", parts.optimizer), (others, rest)]
    # Parts measured apart need not add up to the step.
    listed = ", ".join(f"{name} {max(0.0, value) / step:.0%}" for name, value in shares)
    lines = [f"Of a step of {first}, {step:.2f} s: {listed}."]
    if parts.loader is not None:
        lines.append(
            f"A batch takes {parts.loader:.3f} s to read, decode and prepare with {parts.workers} "
            f"workers, {parts.loader / step:.2f} of a step of {first}; loading and training "
            "overlap, so the slower of the two sets the pace."
        )
    return lines
