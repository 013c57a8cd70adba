"""Whether an exported tower gives what the model gives: features up to rounding, equal rankings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from elip_plugin.errors import ElipError

BATCHES = (1, 2, 7)

ROUNDING = 1e-4
"""Largest difference of a feature that is rounding, as a share of the largest feature."""

TIE = 1e-5
"""Cosines nearer than this may change places in a ranking."""


class ParityError(ElipError):
    """An exported tower that does not give what the model gives."""


@dataclass(frozen=True)
class Parity:
    """How far an exported tower is from the model."""

    differences: dict[int, float]  # largest difference of a feature, by size of the batch
    largest: float  # the largest feature
    rankings: int  # that were compared, one for each input


def compare(
    model: Callable[..., Tensor],
    exported: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    batches: Sequence[int] = BATCHES,
) -> Parity:
    """Run both on batches of several sizes, of inputs with one row per picture or text.

    Raises a ParityError if features [B, E] differ by more than rounding, or an order of neighbors
    changes.
    """
    count, start = inputs[0].shape[0], 0
    differences, pairs = {}, []
    for batch in batches:
        index = (torch.arange(batch) + start) % count
        given = [tensor[index] for tensor in inputs]
        expected, actual = model(*given), exported(*given)
        if expected.shape != actual.shape:
            raise ParityError(
                f"batches of {batch}: the exported tower gives features {tuple(actual.shape)}, the "
                f"model {tuple(expected.shape)}"
            )
        differences[batch] = float((expected - actual).abs().max())
        pairs.append((expected, actual))
        start += batch
    expected, actual = (torch.cat(side).flatten(1) for side in zip(*pairs, strict=True))
    parity = Parity(differences, float(expected.abs().max()), expected.shape[0])
    # One that is no number is not the largest of them.
    if not all(d <= ROUNDING * parity.largest for d in differences.values()):
        worst = next((d for d in differences.values() if d != d), max(differences.values()))
        raise ParityError(
            f"the exported tower gives other features: they differ by up to {worst:.2g}, and the "
            f"largest is {parity.largest:.2g}"
        )
    changed = count_changed_rankings(expected, actual)
    if changed:
        raise ParityError(
            f"the exported tower ranks neighbors in another order for {changed} of "
            f"{parity.rankings} inputs"
        )
    return parity


def count_changed_rankings(expected: Tensor, actual: Tensor, tie: float = TIE) -> int:
    """Count the rows of features [B, E] whose cosines rank the others in another order."""
    first, second = (F.normalize(features.float(), dim=1) for features in (expected, actual))
    order = (first @ first.T).argsort(dim=1, descending=True)
    ranked = (second @ second.T).gather(1, order)
    rises = ranked - ranked.cummin(dim=1).values  # above one that ought to be nearer
    return int((rises > tie).any(dim=1).sum())
