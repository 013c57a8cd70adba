"""timm's Eva: EVA01, EVA02 and the Perception Encoder (PE-Core), with and without rotary positions.

The rotary table [N, 2 d] has a row of sines and cosines for each patch. Prefix tokens are not
rotated, and neither is a query that is no token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from timm.models import eva
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from torch import Tensor

from elip_plugin.core.positions import PositionOptions
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.hosts.open_clip.timm_trunk import (
    PrunableTrunk,
    has_stochastic_depth,
    joined,
    last_norm,
    patch_convolution,
    refuse_dropout,
    shape_of,
)
from elip_plugin.patching.description import Tower
from elip_plugin.patching.named import patched_class
from elip_plugin.patching.parts import Parts, PartsBlock
from elip_plugin.patching.swap import Swap, swaps_for

ATTENTIONS = (EvaAttention, getattr(eva, "AttentionRope", EvaAttention))  # the second is newer


class EvaParts(PartsBlock):
    """Both of timm's EVA blocks; the second normalizes what its parts give, not what they read."""

    def attention_input(self, x: Tensor) -> Tensor:
        """Return what is projected to queries, keys and values."""
        return self.norm1(x) if self.elip_parts.norm_1 else x

    def query_and_keys(
        self, query: Tensor, x: Tensor, rope: Tensor | None = None, **positions: Any
    ) -> tuple[Tensor, Tensor]:
        """Normalize and project a query token and the tokens; see `BlockParts`."""
        attn, (queries, keys, _) = self.attn, projections(self.attn)
        q = attn.q_norm(heads(attn, self.attention_input(query), *queries))
        k = attn.k_norm(heads(attn, self.attention_input(x), *keys))
        return q, rotate(attn, k, rope)

    def queries_keys_values(
        self, x: Tensor, rope: Tensor | None = None, **positions: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Normalize and project tokens; see `BlockParts`."""
        attn, x = self.attn, self.attention_input(x)
        q, k, v = (heads(attn, x, *projection) for projection in projections(attn))
        q, k = (rotate(attn, y, rope).type_as(v) for y in (attn.q_norm(q), attn.k_norm(k)))
        return q, k, v


class ElipEva(PrunableTrunk, Eva):
    """A trunk whose rotary positions follow the tokens."""

    replaces = Eva

    def embed(self, x: Tensor) -> tuple[Tensor, PositionOptions | None]:
        """Return the tokens that enter the first block, and their rotations."""
        tokens, table = self._pos_embed(self.patch_embed(x))
        norm = getattr(self, "norm_pre", None)  # not in every timm 1.0
        tokens = tokens if norm is None else norm(tokens)
        return tokens, None if table is None else rotations(table)


def eva_parts(block: Any) -> Parts:
    """Return where a block has its parts; its projections are those of `projections`."""
    output, depth = (*joined(block), "attn.proj"), "drop_path1"
    if type(block) is EvaBlockPostNorm:  # EVA02-E
        return Parts("", (), "attn.num_heads", (*output, "norm1"), "mlp", ("norm2",), "", "", depth)
    output = (*output, "gamma_1")
    return Parts("norm1", (), "attn.num_heads", output, "norm2", ("mlp", "gamma_2"), "", "", depth)


def projections(attn: Any) -> list[tuple[Tensor, Tensor | None]]:
    """Return weight and bias of the queries', keys' and values' projections."""
    if attn.qkv is None:
        return [(part.weight, part.bias) for part in (attn.q_proj, attn.k_proj, attn.v_proj)]
    biases: Any = (None, None, None)
    if attn.qkv.bias is not None:
        biases = attn.qkv.bias.chunk(3)
    elif getattr(attn, "q_bias", None) is not None:
        biases = attn.q_bias, attn.k_bias, attn.v_bias
    return list(zip(attn.qkv.weight.chunk(3), biases))


def heads(attn: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Project tokens [B, T, D] into heads [B, H, T, A / H]."""
    return F.linear(x, weight, bias).unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)


def rotate(attn: Any, x: Tensor, rope: Tensor | None) -> Tensor:
    """Rotate the heads' vectors [B, H, T, A / H] by their positions, the prefix left out."""
    if rope is None:
        return x
    prefix = x.shape[2] - rope.shape[-2]
    half = {"half": True} if getattr(attn, "rotate_half", False) else {}
    rotated = apply_rot_embed_cat(x[:, :, prefix:], rope, **half)
    return torch.cat([x[:, :, :prefix], rotated], dim=2)


def rotations(table: Tensor) -> PositionOptions:
    """Return what blocks are called with, for a table [N, 2 d] or [B, 1, N, 2 d]."""

    def options(index: Tensor | None, valid: Tensor | None) -> Mapping[str, Any]:
        if index is None:
            return {"rope": table}
        if table.ndim == 2:
            return {"rope": table[index].unsqueeze(1)}
        rows = index[:, None, :, None].expand(-1, -1, -1, table.shape[3])  # after patch dropout
        return {"rope": table.gather(2, rows)}

    return options


def refuse_other_parts(trunk: Any, mixed: bool) -> None:
    """Refuse parts of EVA blocks that are not handled; `mixed` rotary positions differ by block."""
    if mixed:
        raise UnsupportedModelError(
            f"a timm {type(trunk).__name__} with rotary positions of its own in each block: those "
            "that all blocks share are supported"
        )
    for block in trunk.blocks:
        attn = block.attn
        if type(attn) not in ATTENTIONS:
            raise UnsupportedModelError(
                f"attention {type(attn).__name__} is not supported: timm's EvaAttention and "
                "AttentionRope are"
            )
        if getattr(attn, "gate", None) is not None or getattr(attn, "num_kv_groups", 1) > 1:
            raise UnsupportedModelError(
                "gated attention, and keys shared by several heads, are not supported in timm's "
                "EVA blocks"
            )
        refuse_dropout(block.modules())


def describe(trunk: Any, num_patches: int) -> Tower:
    """Describe an Eva trunk; see `Host.describe`."""
    shape = shape_of(trunk, num_patches, trunk.cls_token is not None)
    if trunk.cls_token is not None and trunk.global_pool == "map":
        shape = replace(shape, class_query=True)  # this pooling reads the class token as well
    parts = eva_parts(trunk.blocks[0])
    patched = {cls: patched_class(EvaParts, cls, parts) for cls in (EvaBlock, EvaBlockPostNorm)}
    blocks = swaps_for(trunk.blocks, patched)
    refuse_other_parts(trunk, getattr(trunk, "rope_mixed", False))
    return Tower(
        shape,
        Swap(trunk, ElipEva),
        blocks,
        random_blocks=has_stochastic_depth(trunk.blocks),
        patch_embed=patch_convolution(trunk),
        norm=last_norm(trunk),
    )
