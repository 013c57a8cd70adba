"""What every patched block has, whatever the host: modes beside its own forward."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.named import NamedAsReplaced
from elip_plugin.patching.wrappers import is_adapter


class PrunableBlock(NamedAsReplaced):
    """A block that can be called in a mode; a host's class comes after this in the bases.

    A subclass has the parts of `elip_plugin.core.blocks.BlockParts`, of which these are defaults.
    """

    elip_scale: float | None = None
    """Factor on the attention's logits; (A / H) ** -0.5 if None."""

    def forward(self, x: Tensor, *args: Any, run: Any = None, **options: Any) -> Any:
        """Run the host's forward, or a mode: a function of block, tokens [B, T, D] and options."""
        if run is not None:
            return run(self, x, **options)
        return super().forward(x, *args, **options)  # type: ignore[misc]

    def elip_stochastic_depth(self, added: Tensor) -> Tensor:
        """Return what is added to the tokens [B, T, D]; a host with stochastic depth applies it."""
        return added


class PrunableAttention(NamedAsReplaced):
    """An `nn.MultiheadAttention` that can be called in a mode, with the weights it then has.

    It has raw weights, which what wraps it (LoRA of peft) changes for the time of a call.
    """

    elip_scale = None

    def forward(self, query: Tensor, *args: Any, run: Any = None, **options: Any) -> Any:
        """Run torch's forward, or a mode: a function of attention, tokens [B, T, D] and options.

        A mode returns two tensors, as torch's forward does.
        """
        if run is not None:
            return run(self, query, **options)
        return super().forward(query, *args, **options)  # type: ignore[misc]

    def elip_project(self, x: Tensor, **positions: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Project tokens; see `AttentionParts`."""
        return unpacked(F.linear(x, self.in_proj_weight, self.in_proj_bias), self.num_heads)

    def elip_project_query_and_keys(self, x: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        """Project a normalized query token and normalized tokens; a mode."""
        return sliced(token, x, self.in_proj_weight, self.in_proj_bias, self.num_heads)

    def elip_project_output(self, joined: Tensor) -> Tensor:
        """Project the attention's result, by the weight that torch reads; see `AttentionParts`."""
        weight = weight_read(self.out_proj, "out_proj", "torch's MultiheadAttention")
        return F.linear(joined, weight, self.out_proj.bias)


PLAIN = (nn.Parameter, Tensor)
"""Types of weights that are nothing but numbers; those of replicas are no parameters."""


def is_plain(layer: Any) -> bool:
    """Tell whether a layer is its weight and bias and nothing else, so that rows may be taken."""
    hooked = layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer)
    return type(layer) is nn.Linear and type(layer.weight) in PLAIN and not hooked


def weight_read(layer: Any, name: str, reader: str) -> Tensor:
    """Return the weight of a layer that the host reads, past what is wrapped around it.

    Refuses what would have no effect, or fail, in the host's own forward as well.
    """
    if is_adapter(layer) and not (layer.merged or layer.disable_adapters):
        raise UnsupportedModelError(
            f"{reader} reads the weight of {name!r}, past the adapter on it, which would have no "
            "effect unpruned either: put the adapter on the whole attention, on other layers, or "
            "merge it"
        )
    weight = layer.weight
    if not isinstance(weight, Tensor):
        raise UnsupportedModelError(
            f"{reader} reads the weight of {name!r}, and a {type(layer).__name__} has none, pruned "
            "or not: leave this layer out of the quantization"
        )
    return weight


def unpacked(packed: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split what a packed projection made [B, T, 3 A] into three times [B, H, T, A / H]."""
    packed = packed.view(*packed.shape[:2], 3, heads, packed.shape[2] // (3 * heads))
    q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def sliced(
    query: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, heads: int
) -> tuple[Tensor, Tensor]:
    """Project a query and keys by their rows of a packed weight [3 A, D]."""
    a = weight.shape[0] // 3
    if type(weight) in PLAIN:
        query_bias, key_bias = (None, None) if bias is None else (bias[:a], bias[a : 2 * a])
        q, k = F.linear(query, weight[:a], query_bias), F.linear(x, weight[a : 2 * a], key_bias)
    else:  # a quantized one, which may have no rows
        q, k = F.linear(query, weight, bias)[..., :a], F.linear(x, weight, bias)[..., a : 2 * a]
    q = q.view(*q.shape[:2], heads, a // heads).transpose(1, 2)
    return q, k.view(*k.shape[:2], heads, a // heads).transpose(1, 2)
