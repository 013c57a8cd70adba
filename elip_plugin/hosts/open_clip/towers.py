"""OpenCLIP's native vision tower."""

from __future__ import annotations

from typing import Any

from open_clip.transformer import Attention, CustomResidualAttentionBlock, ResidualAttentionBlock
from torch import Tensor

from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.blocks import PrunableAttention
from elip_plugin.patching.description import Tower
from elip_plugin.patching.parts import Parts

PARTS = Parts("ln_1", "attn", output=("ls_1",), norm_2="ln_2", mlp=("mlp", "ls_2"))


class OwnAttention(PrunableAttention):
    """OpenCLIP's own attention (OpenCLIP 4), which calls its output projection."""

    def elip_project_output(self, joined: Tensor) -> Any:
        """Project the attention's result; see `AttentionParts`."""
        return self.out_drop(self.out_proj(joined))


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
    if any(isinstance(block, CustomResidualAttentionBlock) for block in transformer.resblocks):
        raise UnsupportedModelError(
            "a tower whose config has options of its blocks (qk_norm, scale_heads, scale_attn and "
            "the like), which none of OpenCLIP's has: build it without"
        )
    rows, columns = visual.grid_size
    return Tower(
        visual,
        "transformer.resblocks",
        {ResidualAttentionBlock: PARTS},
        rows * columns,
        transformer.width,
        # Average pooling leaves the class token out.
        class_query=visual.attn_pool is not None or visual.pool_type == "tok",
        # Attentional pooling has it after the pooling, in another width.
        norm="ln_post" if visual.attn_pool is None else "",
        patch_embed="conv1",
        attentions={Attention: OwnAttention},
        restores=visual.attn_pool is not None or visual.pool_type != "tok" or visual.output_tokens,
    )
