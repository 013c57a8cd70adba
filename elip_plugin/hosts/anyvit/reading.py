"""Reading a block: which of its modules are the usual parts, by what each is given and gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from elip_plugin.errors import UnsupportedModelError
from elip_plugin.hosts.anyvit.attention import SCALES, Attention, find_attention, is_linear
from elip_plugin.hosts.anyvit.copies import (
    Event,
    close,
    copied,
    draw_weights,
    merge_adapters,
    random_tokens,
    record,
    run,
)
from elip_plugin.patching.install import random_parts
from elip_plugin.patching.parts import Parts
from elip_plugin.patching.runner import Calling

LEAVES_OUT = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)
"""Modules without weights that are no stochastic depth."""

OTHERWISE = (
    "its result is not softmax(scale * q k) v of the heads' queries, keys and values (they may be "
    "normalized, ordered or packed otherwise, or heads mixed or gated; a scale other than "
    f"(A / H) ** -0.5 must be a number among the block's attributes, called one of {SCALES})"
)


def read_block(
    block: nn.Module, width: int, calling: Calling, tokens: int
) -> tuple[Parts, float | None]:
    """Read a block's parts off a copy with random weights, on random tokens.

    Args:
        block: The block; it stays as it is.
        width: Width D of its tokens.
        calling: How its tower calls it.
        tokens: How many tokens it reads, as many as tables of positions there are for.

    Returns:
        Its parts, and the factor on the attention's logits; None for the usual one.

    Raises:
        UnsupportedModelError: If a part is not of the usual kind, with which.
    """
    block = copied(block)
    draw_weights(block)
    merge_adapters(block)
    x = random_tokens(width, tokens)
    events, out = record(block, x, calling)
    with torch.no_grad():
        tables = {name: calling.options[name] for name in calling.positions}
        attention = find_attention(block, events, tables)
        if attention is None:
            otherwise = dependence(block, x, out, calling) or OTHERWISE
            raise UnsupportedModelError(f"the attention: {otherwise}")
        norm_1 = _find_norm(events, x, attention)
        middle, output = _find_output(block, events, x, attention)
        norm_2, mlp = _find_mlp(block, events, middle, out)
        sides = middle - x, out - middle
        depth = [e for e in events if any(close(e.input, y) for y in sides) and leaves_out(e)]
        refuse_dropout(block, [event.module for event in depth], x, out, calling)
    parts = replace(
        attention.parts,
        norm_1=norm_1,
        output=output,
        norm_2=norm_2,
        mlp=mlp,
        stochastic_depth=depth[0].path if depth else "",
    )
    return parts, attention.scale


def dependence(block: nn.Module, x: Tensor, out: Tensor, calling: Calling) -> str:
    """Say how a block's result depends on the positions of tokens, as a clause; "" if not."""
    order = torch.randperm(x.shape[1])
    if close(run(block, x[:, order], calling), out[:, order]):
        return ""
    seen = torch.ones(x.shape[1], dtype=torch.bool)
    for token in (0, -1):
        other = x.clone()
        other[:, token] = torch.randn_like(other[:, token])
        seen &= (run(block, other, calling) - out).abs().amax(dim=(0, 2)) > 0
    if not seen.all():
        return "not all tokens attend to all others (windows, or a mask)"
    return "it depends on the positions of the tokens (rotary ones, or a bias by position)"


def _find_norm(events: Sequence[Event], x: Tensor, attention: Attention) -> str:
    if close(attention.input, x):
        raise UnsupportedModelError(
            "the norm before the attention: the attention reads the tokens without one (post-norm)"
        )
    for event in events:
        if close(event.input, x) and close(event.output, attention.input):
            return event.path
    raise UnsupportedModelError(
        "the norm before the attention: what the attention reads is not what one module of the "
        "block makes of the tokens"
    )


def _find_output(
    block: nn.Module, events: Sequence[Event], x: Tensor, attention: Attention
) -> tuple[Tensor, tuple[str, ...]]:
    """Find the tokens after the attention, and what its result passes through to be added."""
    for event in events:
        if event.input.shape == x.shape and not close(event.input, x):
            output = find_way(block, events, attention.result, event.input - x)
            if output is not None:
                return event.input, output
    linear = [event for event in linear_readers(events, attention.input) if is_linear(event)]
    own = len(attention.parts.projections)
    if len(linear_readers(events, x)) > 1 or len(linear) > own:
        raise UnsupportedModelError(
            "the MLP: it reads the tokens beside the attention, not after it (parallel blocks)"
        )
    raise UnsupportedModelError(
        "what the attention adds: its result reaches the tokens by more than modules of the block "
        "and tensors that scale it (a gate, or a factor on the tokens)"
    )


def _find_mlp(
    block: nn.Module, events: Sequence[Event], middle: Tensor, out: Tensor
) -> tuple[str, tuple[str, ...]]:
    for event in events:
        if close(event.input, middle) and not event.does_nothing:
            mlp = find_way(block, events, event.output, out - middle)
            if mlp is not None:
                return event.path, mlp
    raise UnsupportedModelError(
        "the MLP: what the block adds to the tokens after the attention is not what they pass "
        "through its modules to (a norm after it, a gate, a factor on the tokens, or functions "
        "that are no attribute of the block)"
    )


def linear_readers(events: Sequence[Event], x: Tensor) -> list[Event]:
    """List the events of the innermost modules that read a tensor, and do something."""
    reading = [event for event in events if close(event.input, x) and not event.does_nothing]
    paths = [event.path for event in reading]
    return [e for e in reading if not any(path.startswith(f"{e.path}.") for path in paths)]


def find_way(
    block: nn.Module, events: Sequence[Event], start: Tensor, goal: Tensor
) -> tuple[str, ...] | None:
    """Find the shortest way from a tensor to another through a block's parts.

    Args:
        block: The block.
        events: What it called.
        start: The tensor that enters.
        goal: The tensor that must come out.

    Returns:
        Paths as in `Parts.output`; None if there is no way.
    """
    ways: list[tuple[Tensor, tuple[str, ...]]] = [(start, ())]
    seen = [start]
    for y, way in ways:  # which grows: the shortest ways come first
        if close(y, goal):
            return way
        for path, after in _steps_from(block, events, y):
            # No part twice, else a function as F.gelu would lead on and on.
            if path not in way and not any(close(after, other) for other in seen):
                seen.append(after)
                ways.append((after, (*way, path)))
    for y, way in ways:
        for path, weight in [*block.named_parameters(), *block.named_buffers()]:
            if weight.shape in ((), (1,), y.shape[-1:]) and close(weight * y, goal):
                return (*way, path)
    return None


def _steps_from(
    block: nn.Module, events: Sequence[Event], y: Tensor
) -> Iterator[tuple[str, Tensor]]:
    for event in events:
        if close(event.input, y):
            yield event.path, event.output
    for name, value in vars(block).items():
        if callable(value) and not isinstance(value, (nn.Module, type)):  # such as F.gelu
            try:
                after = value(y)
            except Exception:  # it is no function of one tensor
                continue
            if isinstance(after, Tensor):
                yield name, after


def leaves_out(event: Event) -> bool:
    """Tell whether an event may be that of stochastic depth."""
    module = event.module
    plain = isinstance(module, LEAVES_OUT) or next(module.parameters(), None) is not None
    return event.does_nothing and not plain


def refuse_dropout(
    block: nn.Module, depth: Sequence[nn.Module], x: Tensor, out: Tensor, calling: Calling
) -> None:
    """Refuse a block that is random in training, its stochastic depth left out."""
    block.train()
    for module in depth:
        module.eval()
    if close(run(block, x, calling), out):
        return
    found = random_parts(block)
    raise UnsupportedModelError(
        f"dropout: in training the block is random ({found or 'by functions that it calls'}), and "
        "choosing tokens must be deterministic; set it to 0 (stochastic depth may stay)"
    )
