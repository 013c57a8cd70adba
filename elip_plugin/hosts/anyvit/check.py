"""Checking descriptions by numbers: a block rebuilt from its parts must equal the block itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from elip_plugin.core.blocks import look_ahead
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.hosts.anyvit.copies import (
    close,
    copied,
    difference,
    draw_weights,
    few_tokens,
    random_tokens,
    record,
    without_traces,
)
from elip_plugin.hosts.anyvit.reading import dependence
from elip_plugin.patching.description import Tower
from elip_plugin.patching.install import block_swaps
from elip_plugin.patching.parts import PartsBlock
from elip_plugin.patching.runner import Calling


def check(tower: Tower) -> float:
    """Check each block of a tower against its description.

    Copies run in float64, with their own weights on as many random tokens as the tower has, and
    with random weights on a few.

    Args:
        tower: The tower; nothing of it changes.

    Returns:
        The largest difference found, over the largest value.

    Raises:
        UnsupportedModelError: If a block differs, with the part that does.
    """
    shape, largest = tower.shape, 0.0
    tokens, for_few = few_tokens(tower.calling, shape.prefix)
    with without_traces():
        few = random_tokens(shape.width, tokens)
        all_tokens = random_tokens(shape.width, shape.prefix + shape.num_patches, batch=1)
        for i, block in enumerate(tower.block_list):
            try:
                # Windows and the like may hold a few tokens, and not all of a tower.
                found = [
                    _check_block(block, tower, few, for_few, drawn=True),
                    _check_block(block, tower, all_tokens, tower.calling, drawn=False),
                ]
            except UnsupportedModelError as error:
                name = type(block).__name__
                raise UnsupportedModelError(
                    f"block {i} ({name}) cannot be pruned: {error}"
                ) from error
            largest = max(largest, *found)
    return largest


def _check_block(given: Any, tower: Tower, x: Tensor, calling: Calling, *, drawn: bool) -> float:
    """Compare a copy of a block, with weights drawn anew or its own, to its description."""
    block = copied(given)
    if drawn:
        draw_weights(block)
    _, out = record(block, x, calling)
    tables = {name: calling.options[name] for name in calling.positions}
    # A query that is no token of the prefix has no position.
    has_query = not tables or tower.prefix > 0
    with torch.no_grad():
        for swap in block_swaps(block, tower):
            swap.apply()
        try:
            rebuilt = look_ahead(block, x, **tables)
            made = block.elip_attend(x, **tables)[1]
            query, keys = block.elip_query_and_keys(x[:, :1], x, **tables)
            q = (
                block.elip_in_attention(_projections, x, **tables)[0][0]
                if isinstance(block, PartsBlock)
                else None
            )
        except Exception as error:
            raise UnsupportedModelError(
                f"its description does not run ({type(error).__name__}: {error})"
            ) from error
        if not close(rebuilt, out):
            by_position = dependence(block, x, out, calling)
            if by_position:
                raise UnsupportedModelError(f"the attention: {by_position}")
            parts = getattr(block, "elip_parts", type(block).__name__)
            raise UnsupportedModelError(
                f"on {x.shape[1]} tokens its own forward makes others than what it is described "
                f"with, {parts}, scale {block.elip_scale}; elip_plugin.describe(model) says what "
                "is found"
            )
        right = q is None or not has_query or close(query, q[:, :, :1])
        if not (close(keys, made) and right):
            raise UnsupportedModelError(
                "elip_query_and_keys of its description gives other queries or keys than its "
                "attention has"
            )
        return difference(rebuilt, out)


def _projections(attention: Any, x: Tensor, **tables: Any) -> tuple[Tensor, None]:
    return torch.stack(attention.elip_project(x, **tables)), None
