"""Checking descriptions by numbers: a block rebuilt from its parts must equal the block itself."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elip_plugin.core.blocks import look_ahead
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.hosts.anyvit.attention import (
    PARALLEL,
    close_to_any,
    is_linear,
    linear_readers,
    projections_of,
    refuse_attention,
)
from elip_plugin.hosts.anyvit.copies import (
    TOLERANCE,
    Event,
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
from elip_plugin.patching.description import Description, Tower
from elip_plugin.patching.install import block_swaps
from elip_plugin.patching.parts import PartsBlock
from elip_plugin.patching.runner import Calling
from elip_plugin.patching.wrappers import innermost

LAYOUTS = (Calling(), Calling(sequence_first=True))
"""How blocks may be called where the description does not say it."""


def checked(description: Description) -> Description:
    """Return a description whose towers are checked by numbers; see `check`."""
    for tower in (description.tower, description.momentum):
        if tower is not None:
            check(tower)
    return description


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
    callings = LAYOUTS if tower.calling == Calling() else (tower.calling,)
    tokens, calling = few_tokens(tower.calling, shape.prefix)
    for_few = callings if calling is tower.calling else (calling,)
    with without_traces():
        few = random_tokens(shape.width, tokens)
        all_tokens = random_tokens(shape.width, shape.prefix + shape.num_patches, batch=1)
        for i, block in enumerate(tower.block_list):
            try:
                # Windows and the like may hold a few tokens, and not all of a tower.
                found = [
                    _check_block(block, tower, few, for_few, drawn=True),
                    _check_block(block, tower, all_tokens, callings, drawn=False),
                ]
            except UnsupportedModelError as error:
                name = type(block).__name__
                raise UnsupportedModelError(
                    f"block {i} ({name}) cannot be pruned: {error}"
                ) from error
            largest = max(largest, *found)
    return largest


def _check_block(
    given: Any, tower: Tower, x: Tensor, callings: Sequence[Calling], *, drawn: bool
) -> float:
    """Compare a block by whichever of some callings it runs."""
    refusals = []
    for calling in callings:
        block = copied(given)
        if drawn:
            draw_weights(block)
        try:
            return _compare(block, tower, x, calling)
        except UnsupportedModelError as error:
            refusals.append(error)
    raise refusals[0]


def _compare(block: Any, tower: Tower, x: Tensor, calling: Calling) -> float:
    events, out = record(block, x, calling)
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
            depends = functools.partial(dependence, block, x, out, calling)
            _refuse(block, events, x, depends, tables)
        right = q is None or not has_query or close(query, q[:, :, :1])
        if not (close(keys, made) and right):
            raise UnsupportedModelError(
                "elip_query_and_keys of its description gives other queries or keys than its "
                "attention has"
            )
        return difference(rebuilt, out)


def _refuse(
    block: Any,
    events: Sequence[Event],
    x: Tensor,
    depends: Callable[[], str],
    tables: Mapping[str, Any],
) -> NoReturn:
    """Refuse a block whose description differs from it, with the part that does."""
    if not isinstance(block, PartsBlock):
        raise UnsupportedModelError("its parts make other tokens than its own forward")
    q, k, v = block.elip_in_attention(_projections, x, **tables)[0]
    mixed = F.scaled_dot_product_attention(q, k, v, scale=block.elip_scale)
    added, joined = block.elip_attend(x, **tables)[0], mixed.transpose(1, 2).flatten(2)
    inputs, outputs = [event.input for event in events], [event.output for event in events]
    if close_to_any(x + added, inputs):
        if close_to_any(block.elip_feed_forward(x + added), outputs):
            raise UnsupportedModelError(
                "what the MLP adds: its result is as described, and the tokens after it are not (a "
                "gate, a scale or a norm after it)"
            )
        raise UnsupportedModelError("the MLP, or the norm before it, is not as described")
    projected = [y.transpose(1, 2).flatten(2) for y in (q, k, v)]
    made = [part for event in events for part in _projected(event)]
    for name, part in zip(("queries", "keys", "values"), projected, strict=True):
        if not close_to_any(part, made):
            raise UnsupportedModelError(
                f"the {name}: the block makes no such ones (its norm before the attention, its "
                "projections or a norm of each head is not as described)"
            )

    def distance(joined: Tensor) -> float:
        return min((_distance(event, joined) for event in events), default=9.0)

    if distance(joined) > TOLERANCE:
        refuse_attention(projected, q.shape[1], distance, depends)
    if close_to_any(added, outputs) and len(linear_readers(events, x)) > 1:
        raise UnsupportedModelError(PARALLEL)
    raise UnsupportedModelError(
        "what the attention adds: its result is as described, and what that passes through, or is "
        "added to, is not (its projection, a gate, a scale or a norm after it, a factor on the "
        "tokens)"
    )


def _projections(attention: Any, x: Tensor, **tables: Any) -> tuple[Tensor, None]:
    return torch.stack(attention.elip_project(x, **tables)), None


def _projected(event: Event) -> Sequence[Tensor]:
    """Return what an event may have made of queries, keys or values [B, T, A]."""
    y = event.output
    if isinstance(innermost(event.module), nn.MultiheadAttention):
        return projections_of(event)
    if y.ndim == 4:  # each head normalized
        return y.flatten(2), y.transpose(1, 2).flatten(2)
    return (y, *y.chunk(3, dim=-1)) if is_linear(event) else ()


def _distance(event: Event, joined: Tensor) -> float:
    """Compute how far an attention's result, heads joined, is from what an event read or made."""
    if isinstance(attn := innermost(event.module), nn.MultiheadAttention):
        return difference(attn.out_proj(joined), event.output)
    reads = is_linear(event) and event.input.shape == joined.shape
    return difference(joined, event.input) if reads else math.inf
