"""What a patched block and a patched stack of blocks have in common, whatever the host."""

from __future__ import annotations

import functools
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from elip_plugin.core.blocks import PackedAttention
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.calls import thread
from elip_plugin.patching.swap import Patched

RECORDED = ("output_attentions", "output_hidden_states")
"""Options of transformers' towers that a pruned forward does not have."""


class PrunableBlock(Patched):
    """A block that can be called in another mode; a host's class comes after this in the bases.

    The host's block has the parts of `elip_plugin.core.blocks.BlockParts`: `packed_attention` (or
    the two methods below it, where its projections are apart), `attention_output`, `feed_forward`.
    """

    elip_scale: float | None = None
    """Factor on the attention's logits; (A / H) ** -0.5 if None."""

    def forward(self, x: Tensor, *args: Any, elip: Any = None, **options: Any) -> Any:
        """Run the host's forward, or a mode: a function of block, tokens [B, T, D] and options."""
        if elip is not None:
            return elip(self, x, **options)
        return super().forward(x, *args, **options)  # type: ignore[misc]

    def packed_attention(self) -> PackedAttention:
        """Return the attention's projections, where they are one matrix."""
        raise NotImplementedError(f"{type(self).__name__} has no packed_attention")

    def query_and_keys(self, query: Tensor, x: Tensor, **positions: Any) -> tuple[Tensor, Tensor]:
        """Normalize and project a query token and the tokens; see `BlockParts`."""
        norm, weight, bias, num_heads, query_norm, key_norm = self.packed_attention()
        a = weight.shape[0] // 3
        query_bias, key_bias = (None, None) if bias is None else (bias[:a], bias[a : 2 * a])
        q = F.linear(norm(query), weight[:a], query_bias)
        k = F.linear(norm(x), weight[a : 2 * a], key_bias)
        q = q.view(*q.shape[:2], num_heads, -1).transpose(1, 2)
        k = k.view(*k.shape[:2], num_heads, -1).transpose(1, 2)
        return q if query_norm is None else query_norm(q), k if key_norm is None else key_norm(k)

    def queries_keys_values(self, x: Tensor, **positions: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Normalize and project tokens; see `BlockParts`."""
        norm, weight, bias, num_heads, query_norm, key_norm = self.packed_attention()
        packed = F.linear(norm(x), weight, bias).view(*x.shape[:2], 3, num_heads, -1)
        q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
        q = q if query_norm is None else query_norm(q)
        return q, k if key_norm is None else key_norm(k), v

    def position_bias(self, **positions: Any) -> Tensor | None:
        """Return what is added to the attention's logits by the positions; by default nothing."""
        return None

    def key_bias(self, **positions: Any) -> Tensor | None:
        """Return what is added for a query without a position; by default nothing."""
        return None

    def stochastic_depth(self, added: Tensor) -> Tensor:
        """Return what is added to the tokens [B, T, D]; a host with stochastic depth applies it."""
        return added


class PrunableTower(Patched):
    """A tower whose forward, from images to features, is one forward of its pruner."""

    def forward(self, *args: Any, **options: Any) -> Any:
        """Run the host's forward, which `Pruner.current` finds in the parts of the tower."""
        before = self.elip.open(self)  # type: ignore[arg-type]
        try:
            return super().forward(*args, **options)  # type: ignore[misc]
        finally:
            thread.innermost = before


class PrunableStack(Patched):
    """What runs a tower's blocks, and carries the pruner."""

    def extra_repr(self) -> str:
        """Show the plan where the model is printed."""
        return f"elip: {self.elip.plan.summary()}"


def call_block(block: Any, x: Tensor, mode: Any = None, **options: Any) -> Any:
    """Call a block, in a mode if there is one."""
    return block(x, **options) if mode is None else block(x, elip=mode, **options)


def call_checkpointed(block: Any, x: Tensor, mode: Any = None, **options: Any) -> Any:
    """Call a block that is computed anew in the backward pass; see `call_block`."""
    return checkpoint(call_block, block, x, mode, use_reentrant=False, **options)


def call_detached(block: Any, x: Tensor, mode: Any, **options: Any) -> Any:
    """Call a block in a mode of which only the tokens have a gradient, not what is beside them.

    Re-entrant checkpointing marks every tensor that it returns as having a gradient. A tensor that
    also is an input of the next block would run all the blocks before it in each backward pass.
    """
    return block(x, elip=functools.partial(_run_detached, mode=mode), **_detached(options))


def _run_detached(block: Any, x: Tensor, *, mode: Any, **options: Any) -> Any:
    out = mode(block, x, **options)
    if isinstance(out, tuple):
        return (out[0], *_detached(dict(enumerate(out[1:]))).values())
    return out


def _detached(values: dict[Any, Any]) -> dict[Any, Any]:
    return {k: v.detach() if isinstance(v, Tensor) else v for k, v in values.items()}


def refuse_recording(config: Any, options: dict[str, Any]) -> None:
    """Refuse to return what each layer made of the tokens; their number changes."""
    for name in RECORDED:
        given = options.get(name)
        if getattr(config, name, False) if given is None else given:
            raise UnsupportedModelError(
                f"{name} is not available from a pruned forward, whose layers have fewer and fewer "
                "tokens and are also run to look ahead: run it inside `handle.disabled()`, or "
                "record what was kept by `handle.trace()`"
            )
