"""Where the time of a training step goes, and whether anything but the vision tower limits it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from elip_plugin.hosts.base import HostModel
from elip_plugin.measure.speed import Row, time_in_turn, timed
from elip_plugin.measure.variants import PASSES, UNPRUNED, Variant, make_variants


@dataclass(frozen=True)
class Parts:
    """Seconds of a training step that pruning does not change, each measured apart."""

    text: float | None  # forward and backward of the tower; None where it reads the images too
    optimizer: float
    loader: float | None = None  # of a batch, shared out to the workers; None without data
    workers: int = 1


def measure_parts(
    host_model: HostModel,
    *,
    batch: int,
    precision: str = "fp32",
    rounds: int = 7,
    load: Callable[[], object] | None = None,
    workers: int = 1,
) -> Parts:
    """Measure what a step takes besides the vision tower; `load` loads a batch in one process."""
    (variant,) = make_variants(host_model, [UNPRUNED], batch=batch, precision=precision).values()
    weights = list(host_model.model.parameters())
    optimizer = torch.optim.AdamW(weights, lr=1e-6)
    PASSES["step"].run(variant, optimizer)  # leaves the gradients that are then applied
    steps: dict[str, Callable[[], object]] = {"optimizer": timed(optimizer.step)}
    if host_model.has_text_tower:
        steps["text"] = timed(partial(_run_text, variant, weights))
    if load is not None:
        steps["loader"] = load
    seconds = {name: statistics.median(t) for name, t in time_in_turn(steps, rounds).items()}
    loader = seconds["loader"] / workers if load is not None else None
    text = 0.0 if variant.tokens is None else seconds.get("text")
    return Parts(text, seconds["optimizer"], loader, workers)


def _run_text(variant: Variant, weights: Sequence[torch.Tensor]) -> None:
    # Not added to the gradients, which the optimizer is timed with.
    trained = [weight for weight in weights if weight.requires_grad]
    torch.autograd.grad(variant.text_loss(), trained, allow_unused=True)


def describe_parts(rows: Sequence[Row], parts: Parts) -> list[str]:
    """Describe the shares of the first variant's step, and in one line what limits it."""
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
    return [f"Of a step of {first}, {step:.2f} s: {listed}.", _limit(seconds, parts, first)]


def _limit(seconds: dict[tuple[str, str], float], parts: Parts, first: str) -> str:
    """Return what limits the step, in one line."""
    step, vision = seconds["step", first], seconds["tower", first]
    fastest, name = min((s, variant) for (of, variant), s in seconds.items() if of == "step")
    if parts.loader is not None:
        takes = (
            f"a batch takes {parts.loader:.2f} s to load and decode with {parts.workers} workers "
            f"at best, a step of {name} {fastest:.2f} s"
        )
        if parts.loader >= step:
            return f"The loader limits: {takes}; pruning saves nothing before loading is faster."
        if parts.loader > fastest:
            return (
                f"The loader limits the pruned step: {takes}, so pruning saves "
                f"{1 - parts.loader / step:.0%} instead of {1 - fastest / step:.0%}."
            )
    if parts.text is None:
        return "The text side reads the image tokens, so pruning may save more than in the tower."
    limits = "The text tower does not limit"
    if parts.text >= vision:
        limits = "The text tower limits (shorter texts help)"
    elif parts.loader is not None:
        limits = "Neither the text tower nor the loader limits"
    return (
        f"{limits}: the vision tower is {vision / step:.0%} of the step, so pruning can make it no "
        f"faster than {max(0.0, 1 - vision / step):.2f} of {first}."
    )
