"""One plan for a batch whose images have different numbers of patches.

Each image has the plan of its own number of patches; the tensors are as long as the longest needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from elip_plugin.core.stage import PlannedStage
from elip_plugin.errors import PlanError
from elip_plugin.planning import Plan

Stage = tuple[PlannedStage, list[int]]
"""A stage, and how many tokens each image keeps."""


@dataclass
class Padding:
    """What differs from image to image in a batch."""

    valid: Tensor  # which tokens after the prefix are real [B, N]
    stages: dict[int, PlannedStage]  # by their block
    left: Tensor | None = None  # which are real after the last block [B, T' - P]


def trim(x: Tensor, valid: Tensor, prefix: int) -> tuple[Tensor, Tensor, list[int]]:
    """Cut off the columns of tokens [B, P + N, D] that are padding in all images.

    Returns tokens [B, P + N', D], which of them are real [B, N'], and how many in each image.
    """
    places = torch.arange(1, valid.shape[1] + 1, device=valid.device)
    counts, ends = torch.stack([valid.sum(dim=1), (valid * places).amax(dim=1)]).tolist()
    return x[:, : prefix + max(ends)], valid[:, : max(ends)], counts


def plan_each(counts: Sequence[int], length: int, plan_for: Callable[[int], Plan]) -> list[Stage]:
    """Resolve the stages of a batch whose tensors have room for `length` patches, in order.

    Where the plan cannot hold for an image (a few patches, of which a stage would keep none), the
    image keeps all.
    """
    plans: dict[int, dict[int, PlannedStage]] = {}
    prefix = 0
    for count in set(counts):
        try:
            planned = plan_for(count)
        except PlanError:
            plans[count] = {}
        else:
            plans[count], prefix = planned.by_block, planned.prefix
    made: list[Stage] = []
    present, back = list(counts), (0, list(counts), length)
    for block in sorted({block for stages in plans.values() for block in stages}):
        if back[0] and back[0] <= block:  # the tokens of the stage before came back
            present, length, back = back[1], back[2], (0, [], 0)
        own = [plans[count].get(block) for count in counts]
        first = next(stage for stage in own if stage is not None)
        merged = first.tokens_out - prefix - first.keep
        keep = [n if stage is None else stage.keep for n, stage in zip(present, own, strict=True)]
        longest = max(keep)
        tokens = prefix + length, prefix + longest + merged
        stage = PlannedStage(block, first.lookahead, longest, *tokens, first.until)
        made.append((stage, keep))
        if first.until is not None:
            back = first.until, present, length
        present = [
            n if stage is None else k + merged
            for n, k, stage in zip(present, keep, own, strict=True)
        ]
        length = longest + merged
    return made


def on_device(stages: Sequence[Stage], device: torch.device) -> dict[int, PlannedStage]:
    """Return stages by their blocks, with what each image keeps as a tensor there."""
    if not stages:
        return {}
    rows = torch.tensor([keep for _, keep in stages]).to(device, non_blocking=True)
    return {
        stage.block: replace(stage, keep_each=row)
        for (stage, _), row in zip(stages, rows, strict=True)
    }
