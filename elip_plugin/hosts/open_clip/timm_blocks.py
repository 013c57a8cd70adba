"""timm's block, which several of its trunks have."""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer import Attention

from elip_plugin.errors import UnsupportedModelError
from elip_plugin.hosts.open_clip.timm_trunk import joined
from elip_plugin.patching.parts import Parts


def parts_of(block: Any) -> Parts:
    """Return where a block has its parts; dropout is refused, stochastic depth may be there."""
    return Parts(
        "norm1",
        ("attn.qkv.weight", "attn.qkv.bias"),
        "attn.num_heads",
        (*joined(block), "attn.proj", "ls1"),
        "norm2",
        ("mlp", "ls2"),
        "attn.q_norm",
        "attn.k_norm",
        "drop_path1",
    )


def refuse_other_attention(block: Any) -> None:
    """Refuse a block whose attention is not timm's plain one."""
    if type(block.attn) is not Attention or getattr(block.attn, "gate", None) is not None:
        gated = "gated " if type(block.attn) is Attention else ""
        raise UnsupportedModelError(
            f"{gated}attention {type(block.attn).__name__} is not supported: timm's plain "
            "Attention is"
        )
