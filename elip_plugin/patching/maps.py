"""What linear layers multiply by, with all that wraps them: for guides, which go the other way."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from elip_plugin.core.precision import exact
from elip_plugin.patching.blocks import is_plain
from elip_plugin.patching.wrappers import in_effect


def linear_map(layer: Any) -> Tensor:
    """Return the matrix [out, in] of a linear layer, whatever is wrapped around its weight.

    A plain layer has it. Of any other (adapters, quantized weights, hooks) it is what the layer
    makes of each unit vector, less what it makes of zero.
    """
    layer = in_effect(layer)
    if is_plain(layer):
        weight: Tensor = layer.weight
        return weight
    layer, zero = _without_dropout(layer), _zero_for(layer)
    one = torch.eye(layer.in_features, dtype=zero.dtype, device=zero.device)
    with torch.no_grad(), exact(zero):
        found: Tensor = (layer(one) - layer(zero.new_zeros(1, layer.in_features))).t()
        return found


def pooling_maps(attention: Any, own: type | None = None) -> list[Tensor]:
    """Return the maps of a pooling by an `nn.MultiheadAttention`, last one first.

    Or by an attention of a host's `own`, which has its weights by its names.

    They are its output's projection and that of its values: over a single token, attention is
    linear. Where something is wrapped around the attention, it is one map, found by such calls.
    """
    attention = in_effect(attention)
    if type(attention) in (nn.MultiheadAttention, own):
        value = attention.v_proj_weight  # None where all widths agree and the three are packed
        packed, out = attention.in_proj_weight, attention.out_proj
        out = out.weight if type(attention) is nn.MultiheadAttention else linear_map(out)
        return [out, packed.chunk(3)[2] if value is None else value]
    # A copy: peft changes the weights of an attention, and changes them back, at each call.
    attention, zero = copy.deepcopy(attention).eval(), _zero_for(attention)
    width, place = attention.vdim, 1 if attention.batch_first else 0
    tokens = torch.eye(width, dtype=zero.dtype, device=zero.device).unsqueeze(place)
    query = zero.new_zeros(width, attention.embed_dim).unsqueeze(place)
    with torch.no_grad(), exact(zero):
        nothing = torch.zeros_like(tokens)
        made = attention(query, tokens, tokens)[0] - attention(query, nothing, nothing)[0]
    return [made.squeeze(place).t()]


def _zero_for(layer: nn.Module) -> Tensor:
    """Return a zero of a layer's type and device."""
    weight = next((p for p in layer.parameters() if p.is_floating_point()), torch.zeros(()))
    return torch.zeros((), dtype=weight.dtype, device=weight.device)


def _without_dropout(layer: nn.Module) -> Any:
    """Return a layer that drops nothing, a copy if need be: guides are deterministic."""
    drops = any(
        module.training and value > 0
        for module in layer.modules()
        for name, value in vars(module).items()
        if isinstance(value, float) and (name == "p" or name == "dropout")
    )
    return copy.deepcopy(layer).eval() if drops else layer
