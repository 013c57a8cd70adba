"""A block's attention: found by what the block computes, or refused with what differs."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from elip_plugin.errors import UnsupportedModelError
from elip_plugin.hosts.anyvit.copies import Event, close
from elip_plugin.patching.parts import Parts
from elip_plugin.patching.rotary import Rotary
from elip_plugin.patching.wrappers import innermost

SCALES = ("scale", "scaling", "softmax_scale", "attn_scale", "scale_factor")
"""Attributes in which blocks keep the factor on the logits."""


class Attention(NamedTuple):
    """What a block's attention is made of, and what it computed.

    Attributes:
        parts: Those of the attention.
        scale: Factor on the logits; None for (A / H) ** -0.5.
        input: The normalized tokens that it reads [B, T, D].
        result: What it gives: heads joined [B, T, A], or what torch's module makes of them.
    """

    parts: Parts
    scale: float | None
    input: Tensor
    result: Tensor


def mix(
    projected: Sequence[Tensor],
    heads: int,
    scale: float | None,
    norms: Any = None,
    turn: Callable[[Tensor], Tensor] = lambda y: y,
) -> Tensor:
    """Compute an attention's result, heads joined, of queries, keys and values [B, T, A] each."""
    q, k, v = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in projected)
    if norms is not None:
        q, k = norms[0](q), norms[1](k)
    q, k = turn(q), turn(k)
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)


def is_linear(event: Event) -> bool:
    """Tell whether an event is that of a linear layer."""
    weight = getattr(event.module, "weight", None)
    shape = (event.output.shape[-1], event.input.shape[-1])
    return isinstance(weight, Tensor) and tuple(weight.shape) == shape


def find_attention(
    block: nn.Module, events: Sequence[Event], tables: Mapping[str, Any]
) -> Attention | None:
    """Find the attention of a block among the modules that it called.

    Args:
        block: The block.
        events: What it called, on random tokens.
        tables: What it was given for positions, by the option's name.

    Returns:
        The attention; None if it is not softmax(scale * q k) v of what it projects.

    Raises:
        UnsupportedModelError: If it has no usual projections.
    """
    for event in events:
        if isinstance(innermost(event.module), nn.MultiheadAttention):
            return _from_multihead(event)
        if is_linear(event):
            return _from_linear(block, events, event, tables)
    raise UnsupportedModelError("the attention: the block calls no linear layer")


def _from_multihead(event: Event) -> Attention | None:
    attn: Any = innermost(event.module)
    if attn.in_proj_weight is None or attn.bias_k is not None or attn.add_zero_attn:
        raise UnsupportedModelError(
            f"the attention's projections: {event.path!r} is an nn.MultiheadAttention with kdim, "
            "vdim, add_bias_kv or add_zero_attn"
        )
    projected = F.linear(event.input, attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)
    result = attn.out_proj(mix(projected, attn.num_heads, None))
    if not close(result, event.output):
        return None
    return Attention(Parts(attention=event.path), None, event.input, result)


def _from_linear(
    block: nn.Module, events: Sequence[Event], first: Event, tables: Mapping[str, Any]
) -> Attention | None:
    linear = [event for event in events if is_linear(event)]
    together = [event for event in linear if close(event.input, first.input)]
    widths = [event.output.shape[-1] for event in together]
    reading = [event for event in linear if event not in together]
    if any(3 * event.input.shape[-1] == widths[0] for event in reading):
        chosen, width = together[:1], widths[0] // 3
        orders = [first.output.chunk(3, dim=-1)]
        paths: list[tuple[str, ...]] = [(first.path,)]
    else:
        chosen, width = [e for e in together if e.output.shape[-1] == widths[0]], widths[0]
        if len(chosen) != 3:
            raise UnsupportedModelError(
                f"the attention's projections: {[event.path for event in together]} read the same "
                f"tokens and give {widths} numbers each; usual is one of three times a width, or "
                "three of one width, without a gate and without keys that heads share"
            )
        turns = list(itertools.permutations(chosen))
        orders = [tuple(event.output for event in turn) for turn in turns]
        paths = [tuple(event.path for event in turn) for turn in turns]
    targets = [event.input for event in reading if event.input.shape[-1] == width]

    for h in (n for n in range(1, width + 1) if width % n == 0):
        for norms in head_norms(events, width // h):
            called = [block.get_submodule(path) for path in norms if path] or None
            for projected, path in zip(orders, paths, strict=True):
                for scale, (rotary, turn) in itertools.product(
                    _scales(block, width // h), rotaries(tables, width // h)
                ):
                    joined = mix(projected, h, scale, called, turn)
                    if any(close(joined, target) for target in targets):
                        parts = Parts("", "", path, h, *norms, rotary=rotary)
                        return Attention(parts, scale, first.input, joined)
    return None


def rotaries(
    tables: Mapping[str, Any], size: int
) -> list[tuple[Rotary | None, Callable[[Tensor], Tensor]]]:
    """List the ways to turn queries and keys of a size per head by tables; without any, not at all.

    Args:
        tables: What the block was given for positions, by the option's name.
        size: Numbers of a head A / H.

    Returns:
        The ways, each with a function that turns queries or keys [B, H, T, A / H].
    """
    if not tables:
        return [(None, lambda y: y)]
    found: list[tuple[Rotary | None, Callable[[Tensor], Tensor]]] = []
    for (name, table), halves in itertools.product(tables.items(), (True, False)):
        packed = isinstance(table, Tensor)
        width = table.shape[-1] if packed else table[0].shape[-1]
        if width == (2 * size if packed else size) and size % 2 == 0:
            rotary = Rotary(name, packed, halves)
            found.append((rotary, functools.partial(rotary.turn, table=table)))
    return found


def head_norms(events: Sequence[Event], size: int) -> Iterator[tuple[str, str]]:
    """Iterate over the paths of what may normalize queries and keys of a size per head."""
    found = [
        event.path
        for event in events
        if event.input.ndim == 4 and event.input.shape[-1] == size and not event.does_nothing
    ]
    if len(found) == 2:
        yield found[0], found[1]
        yield found[1], found[0]
    else:
        yield "", ""


def _scales(block: nn.Module, size: int) -> list[float | None]:
    usual, found = size**-0.5, []
    for module in block.modules():
        given = (getattr(module, name, None) for name in SCALES)
        found += [s for s in given if isinstance(s, float) and not math.isclose(s, usual)]
    return [None, *dict.fromkeys(found)]
