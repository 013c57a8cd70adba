"""The blocks of timm's trunks: plain ones, and EVA's, whose queries and keys may be turned."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.models import eva
from timm.models.eva import EvaAttention, EvaBlockPostNorm
from timm.models.vision_transformer import Attention
from torch import Tensor

from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.blocks import sliced, unpacked, weight_read
from elip_plugin.patching.named import patched_class
from elip_plugin.patching.parts import PackedBlock, Parts
from elip_plugin.patching.rotary import Rotary

EVA_ATTENTIONS = (EvaAttention, getattr(eva, "AttentionRope", EvaAttention))  # the second is newer


def plain_parts(block: Any) -> Parts:
    """Return where timm's plain block has its parts; refuse one with another attention."""
    if type(block.attn) is not Attention or getattr(block.attn, "gate", None) is not None:
        gated = "gated " if type(block.attn) is Attention else ""
        raise UnsupportedModelError(
            f"{gated}attention {type(block.attn).__name__} is not supported: timm's plain "
            "Attention is"
        )
    return Parts(
        "norm1",
        projections=("attn.qkv",),
        heads="attn.num_heads",
        query_norm="attn.q_norm",
        key_norm="attn.k_norm",
        output=(*_joined(block), "attn.proj", "ls1"),
        norm_2="norm2",
        mlp=("mlp", "ls2"),
        stochastic_depth="drop_path1",
    )


def _joined(block: Any) -> tuple[str, ...]:
    """Return the path of what normalizes joined heads; not every timm 1.0 has it."""
    return ("attn.norm",) if hasattr(block.attn, "norm") else ()


def eva_parts(block: Any, rotary: bool) -> Any:
    """Return where an EVA block has its parts, or its patched class.

    Args:
        block: The block; the second kind normalizes what its parts give.
        rotary: Whether it is given a table of positions.

    Returns:
        For `Tower.parts`. UnsupportedModelError for another attention.
    """
    attn = block.attn
    if type(attn) not in EVA_ATTENTIONS:
        raise UnsupportedModelError(
            f"attention {type(attn).__name__} is not supported: timm's EvaAttention and "
            "AttentionRope are"
        )
    if getattr(attn, "gate", None) is not None or getattr(attn, "num_kv_groups", 1) > 1:
        raise UnsupportedModelError(
            "gated attention, and keys shared by several heads, are not supported in timm's EVA "
            "blocks"
        )
    packed = attn.qkv is not None
    names = ("attn.qkv",) if packed else ("attn.q_proj", "attn.k_proj", "attn.v_proj")
    post = type(block) is EvaBlockPostNorm  # EVA02-E
    halves = getattr(attn, "rotate_half", False)
    parts = Parts(
        "" if post else "norm1",
        projections=names,
        heads="attn.num_heads",
        query_norm="attn.q_norm",
        key_norm="attn.k_norm",
        output=(*_joined(block), "attn.proj", "norm1" if post else "gamma_1"),
        norm_2="" if post else "norm2",
        mlp=("mlp", "norm2" if post else "gamma_2"),
        stochastic_depth="drop_path1",
        rotary=Rotary("rope", packed=True, halves=halves) if rotary else None,
    )
    biased = packed and getattr(attn, "q_bias", None) is not None
    return patched_class(BiasedBlock, type(block), parts) if biased else parts


class BiasedBlock(PackedBlock):
    """timm's EVA block with one projection, which reads its weight beside biases of its own."""

    def elip_project_heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project normalized tokens; see `PartsBlock`."""
        q, k, v = unpacked(F.linear(x, *self.elip_weight_and_bias()), self.attn.num_heads)
        return *self.elip_norm_heads(q, k), v

    def elip_project_query_and_keys(
        self, query: Tensor, x: Tensor, **positions: Any
    ) -> tuple[Tensor, Tensor]:
        """Project by rows of the weight; see `PartsBlock`."""
        q, k = self.elip_norm_heads(
            *sliced(query, x, *self.elip_weight_and_bias(), self.attn.num_heads)
        )
        return q, self.elip_place(k, **positions)

    def elip_weight_and_bias(self) -> tuple[Tensor, Tensor]:
        """Return the packed weight and bias that timm reads."""
        attn = self.attn
        bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
        return weight_read(attn.qkv, "attn.qkv", "timm's EvaAttention"), bias
