"""Guides from a text side that reads a tower by cross-attention: BLIP's encoders, a Q-Former."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from elip_plugin.core.guide import TextQueries
from elip_plugin.patching.maps import linear_map


def queries_of(
    layers: Sequence[Any],
    states: Tensor,
    mask: Tensor,
    *,
    attend: Callable[[Any, Tensor], Tensor],
    crosses: Callable[[Any], Sequence[Any]],
    read: Callable[[Any, Tensor, Tensor], Tensor],
    images: int = 1,
) -> TextQueries:
    """Compute what the cross-attentions of a text side compare a tower's tokens with.

    Their logits are linear in the tokens: the queries, mapped back to the tower's width by the
    keys' projection, give the same by one product each. Those of the first one depend on the text
    alone; those of the following ones on what the layers before them read in the tokens.

    Args:
        layers: Layers of the text side, from the first to the last one whose cross-attention is
            asked for; the first has one.
        states: What enters the first layer [B, S, text width].
        mask: Which of the words, or query tokens, are real [B, S'], of those that read.
        attend: Runs a layer's self-attention on states, up to its cross-attention [B, S', .].
        crosses: Lists the cross-attentions of a layer, one or one for each of two images; [] for a
            layer without.
        read: Runs a layer on states and the tower's tokens: the states after it.
        images: How many images each text guides, in one batch after the other.

    Returns:
        Guides per word and head [images * B, S' * heads, D]; 0 for padding.
    """

    def guides(layer: Any, states: Tensor) -> Tensor:
        attended = attend(layer, states)
        found = [_in_tower(cross, attended, mask) for cross in crosses(layer)[:images]]
        return found[0] if images == 1 else torch.cat(found * (images // len(found)))

    def further(y: Tensor) -> Tensor:
        made, now = [], states
        for layer, following in pairwise(layers):
            # Detached: a backward pass through the reading of all tokens costs more than it gains.
            # (Under no_grad, autocast would keep its casts of these weights without gradient.)
            now = read(layer, now, y).detach()
            if crosses(following):
                made.append(guides(following, now))
        return torch.cat(made, dim=1)

    return TextQueries(guides(layers[0], states), further if len(layers) > 1 else None)


def _in_tower(cross: Any, states: Tensor, mask: Tensor) -> Tensor:
    """Map the queries of states [B, S, text width] to the tower's width [B, S * heads, D].

    Their products with a token after the tower's last norm are the attention's logits, but for what
    is the same for all tokens.
    """
    heads, size = cross.num_attention_heads, cross.attention_head_size
    queries = cross.query(states).unflatten(-1, (heads, size)) * mask[:, :, None, None]
    keys = linear_map(cross.key).reshape(heads, size, -1).to(queries.dtype)
    guides: Tensor = torch.einsum("bshd,hdw->bshw", queries, keys).flatten(1, 2) / size**0.5
    return guides
