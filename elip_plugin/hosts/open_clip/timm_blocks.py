"""The blocks of timm's trunks: plain, with rotary positions, and with relative ones.

The rotary table [N, 2 d] has a row of sines and cosines for each patch. Prefix tokens are not
rotated, and neither is a query that is no token. Of a bias by relative positions
[1, H, P + N, P + N], the rows and columns of the tokens' positions are taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import RelPosMlp, apply_rot_embed_cat
from timm.models import eva
from timm.models.eva import EvaAttention, EvaBlockPostNorm
from timm.models.vision_transformer import Attention
from torch import Tensor

from elip_plugin.core.positions import PositionOptions
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.blocks import sliced, unpacked, weight_read
from elip_plugin.patching.named import patched_class
from elip_plugin.patching.parts import PackedBlock, Parts, PartsBlock, SeparateBlock

EVA_ATTENTIONS = (EvaAttention, getattr(eva, "AttentionRope", EvaAttention))  # the second is newer


def plain_parts(block: Any) -> Parts:
    """Return where timm's plain block, and that with relative positions, have their parts."""
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


def refuse_other_attention(block: Any) -> None:
    """Refuse a plain block whose attention is not timm's plain one."""
    if type(block.attn) is not Attention or getattr(block.attn, "gate", None) is not None:
        gated = "gated " if type(block.attn) is Attention else ""
        raise UnsupportedModelError(
            f"{gated}attention {type(block.attn).__name__} is not supported: timm's plain "
            "Attention is"
        )


class RotaryBlock(PartsBlock):
    """A block whose queries and keys are rotated by their positions."""

    def elip_place(self, y: Tensor, rope: Tensor | None = None, **positions: Any) -> Tensor:
        """Rotate queries or keys, the prefix left out; see `PartsBlock`."""
        if rope is None:
            return y
        prefix = y.shape[2] - rope.shape[-2]
        half = {"half": True} if getattr(self.attn, "rotate_half", False) else {}
        rotated = apply_rot_embed_cat(y[:, :, prefix:], rope, **half)
        return torch.cat([y[:, :, :prefix], rotated], dim=2)

    def elip_project(self, x: Tensor, **positions: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Project normalized tokens, of one type; see `AttentionParts`."""
        q, k, v = super().elip_project(x, **positions)
        return q.type_as(v), k.type_as(v), v


class SeparateEvaBlock(RotaryBlock, SeparateBlock):
    """timm's EVA block with three projections."""


class PackedEvaBlock(RotaryBlock, PackedBlock):
    """timm's EVA block with one projection, which may read its weight beside biases of its own."""

    def elip_project_heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project normalized tokens; see `PartsBlock`."""
        attn = self.attn
        if getattr(attn, "q_bias", None) is None:
            return super().elip_project_heads(x)
        q, k, v = unpacked(F.linear(x, *self.elip_weight_and_bias()), attn.num_heads)
        return *self.elip_norm_heads(q, k), v

    def elip_project_query_and_keys(
        self, query: Tensor, x: Tensor, **positions: Any
    ) -> tuple[Tensor, Tensor]:
        """Project by rows of the weight; see `PartsBlock`."""
        if getattr(self.attn, "q_bias", None) is None:
            return super().elip_project_query_and_keys(query, x, **positions)
        q, k = self.elip_norm_heads(
            *sliced(query, x, *self.elip_weight_and_bias(), self.attn.num_heads)
        )
        return q, self.elip_place(k, **positions)

    def elip_weight_and_bias(self) -> tuple[Tensor, Tensor]:
        """Return the packed weight and bias that timm reads."""
        attn = self.attn
        bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
        return weight_read(attn.qkv, "attn.qkv", "timm's EvaAttention"), bias


def eva_block(block: Any) -> Any:
    """Return the patched class of an EVA block; the second kind normalizes what its parts give."""
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
    )
    return patched_class(PackedEvaBlock if packed else SeparateEvaBlock, type(block), parts)


def rotations(given: Mapping[str, Any], prefix: int) -> PositionOptions | None:
    """Return what blocks are called with, for a table [N, 2 d] or [B, 1, N, 2 d]."""
    table = given.get("rope")
    if table is None:
        return None

    def options(index: Tensor) -> Mapping[str, Any]:
        if table.ndim == 2:
            return {"rope": table[index].unsqueeze(1)}
        rows = index[:, None, :, None].expand(-1, -1, -1, table.shape[3])  # after patch dropout
        return {"rope": table.gather(2, rows)}

    return options


class RelativeBlock(PackedBlock):
    """timm's block with a relative position bias of its own or of the trunk's."""

    def forward(
        self, x: Tensor, *args: Any, run: Any = None, places: Tensor | None = None, **options: Any
    ) -> Any:
        """Run the block for tokens at places [B, T - P], or a mode; see `PrunableBlock`."""
        if run is not None:
            return run(self, x, places=places, **options)
        if places is None:
            return super().forward(x, *args, **options)
        added, _ = self.elip_attend(x, self.elip_position_bias(places=places))
        x = x + self.drop_path1(added)
        return x + self.drop_path2(self.elip_feed_forward(x))

    def elip_position_bias(self, **positions: Any) -> Tensor | None:
        """Compute the bias of the attention's logits; see `BlockParts`."""
        own, places = self.attn.rel_pos, positions.get("places")
        if own is None:
            shared: Tensor | None = positions["shared_rel_pos"]
            return shared
        # Tokens are chosen without gradient, and without the dropout that this bias may have.
        drawn = torch.is_grad_enabled() or not isinstance(own, RelPosMlp)
        bias = own.get_bias() if drawn else bias_without_dropout(own)
        return bias if places is None else take_bias(bias, places, own.prefix_tokens)


def relative_positions(given: Mapping[str, Any], prefix: int) -> PositionOptions:
    """Return what blocks are called with: rows and columns of a bias that all share, or places."""
    bias = given.get("shared_rel_pos")

    def options(index: Tensor) -> Mapping[str, Any]:
        if bias is None:
            return {"shared_rel_pos": None, "places": index}
        return {"shared_rel_pos": take_bias(bias, index, prefix)}

    return options


def take_bias(bias: Tensor, places: Tensor, prefix: int) -> Tensor:
    """Take the rows and columns of the prefix and of the patches at places [B, T - P].

    Turns the bias for all tokens [1, H, P + N, P + N] into [B, H, T, T].
    """
    first = torch.arange(prefix, device=places.device).expand(len(places), -1)
    index = torch.cat([first, places + prefix], dim=1)
    return bias[0][:, index.unsqueeze(2), index.unsqueeze(1)].transpose(0, 1)


def bias_without_dropout(rel_pos: Any) -> Tensor:
    """Compute a `RelPosMlp`'s bias as in evaluation."""
    mlp, prefix = rel_pos.mlp, rel_pos.prefix_tokens
    offsets = mlp.fc2(mlp.norm(mlp.act(mlp.fc1(rel_pos.rel_coords_log))))
    table = rel_pos.bias_act(offsets.view(-1, rel_pos.num_heads))
    table = table if rel_pos.bias_gain is None else rel_pos.bias_gain * table
    bias = table[rel_pos.relative_position_index].view(rel_pos.bias_shape).permute(2, 0, 1)
    return F.pad(bias, [prefix, 0, prefix, 0]).unsqueeze(0)
