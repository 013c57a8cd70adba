"""OpenCLIP's native vision tower."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch.nn.functional as F
from open_clip.transformer import (
    Attention,
    CustomResidualAttentionBlock,
    ResidualAttentionBlock,
)
from torch import Tensor

from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.blocks import sliced, unpacked
from elip_plugin.patching.description import Tower
from elip_plugin.patching.named import patched_class
from elip_plugin.patching.parts import Parts, PartsBlock

PARTS = Parts("ln_1", "attn", output=("ls_1",), norm_2="ln_2", mlp=("mlp", "ls_2"))

INNER = ("attn.ln_inner",) if "inner_norm" in signature(Attention).parameters else ()
"""From OpenCLIP 3 on."""

CUSTOM_PARTS = Parts(
    "ln_1",
    heads="attn.num_heads",
    query_norm="attn.ln_q",
    key_norm="attn.ln_k",
    output=(*INNER, "attn.out_proj", "ln_attn", "ls_1"),
    norm_2="ln_2",
    mlp=("mlp", "ls_2"),
)


class CustomBlock(PartsBlock):
    """OpenCLIP's custom block: raw weights, normalized queries and keys, scaled heads."""

    def elip_attention(self) -> Any:
        """Return the attention; refuse one whose weights are not its own."""
        if not isinstance(self.attn, Attention):
            raise UnsupportedModelError(
                f"'attn' of this {type(self).__name__} is a {type(self.attn).__name__}, and was "
                "OpenCLIP's Attention when ELIP was applied: exchange it before"
            )
        return self.attn

    def elip_project_heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project normalized tokens; see `PartsBlock`."""
        attn = self.elip_attention()
        q, k, v = unpacked(F.linear(x, attn.in_proj_weight, attn.in_proj_bias), attn.num_heads)
        return *self.elip_norm_heads(q, k), v

    def elip_project_query_and_keys(
        self, query: Tensor, x: Tensor, **positions: Any
    ) -> tuple[Tensor, Tensor]:
        """Project by rows of the weight; see `PartsBlock`."""
        attn = self.elip_attention()
        q, k = sliced(query, x, attn.in_proj_weight, attn.in_proj_bias, attn.num_heads)
        return self.elip_norm_heads(q, k)

    def elip_project_output(self, joined: Tensor) -> Tensor:
        """Scale the heads and project; see `AttentionParts`."""
        scale = self.attn.head_scale  # [H, 1, 1]
        if scale is not None:
            joined = joined * scale.flatten().repeat_interleave(joined.shape[-1] // len(scale))
        return super().elip_project_output(joined)


BLOCKS = {
    ResidualAttentionBlock: PARTS,
    CustomResidualAttentionBlock: patched_class(
        CustomBlock, CustomResidualAttentionBlock, CUSTOM_PARTS
    ),
}


def describe(visual: Any) -> Tower:
    """Describe a native vision tower; see `Host.describe`."""
    if visual.attn_pool is not None and visual.attn_pool_contrastive is not None:
        raise UnsupportedModelError(
            f"attentional pooling {visual.attn_pool_type!r}, with two poolers in a row or side by "
            "side, is not supported; attentional_pool: true, class-token and average pooling are"
        )
    if visual.pool_type not in ("tok", "avg"):
        raise UnsupportedModelError(
            f"pool_type {visual.pool_type!r} is not supported: it gives no image feature to guide; "
            "'tok' and 'avg' are"
        )
    transformer = visual.transformer
    if not getattr(transformer, "batch_first", True):  # OpenCLIP 4 has no other form
        raise UnsupportedModelError("a tower with sequence-first blocks: build it batch first")
    if any(getattr(block.attn, "scaled_cosine", False) for block in transformer.resblocks):
        raise UnsupportedModelError("scaled cosine attention is not supported: build it without")
    rows, columns = visual.grid_size
    return Tower(
        visual,
        "transformer.resblocks",
        BLOCKS,
        rows * columns,
        transformer.width,
        # Average pooling leaves the class token out.
        class_query=visual.attn_pool is not None or visual.pool_type == "tok",
        # Attentional pooling has it after the pooling, in another width.
        norm="ln_post" if visual.attn_pool is None else "",
        patch_embed="conv1",
        restores=visual.attn_pool is not None or visual.pool_type != "tok" or visual.output_tokens,
    )
