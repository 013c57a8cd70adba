"""What timm's trunks have in common, whatever their blocks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from timm.layers import PatchEmbed
from torch import Tensor, nn

from elip_plugin.core.positions import PositionOptions
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.blocks import PrunableStack, call_block, call_checkpointed
from elip_plugin.patching.description import TowerShape


class PrunableTrunk(PrunableStack):
    """A trunk that prunes between its blocks, outside any checkpointed region."""

    if TYPE_CHECKING:
        blocks: Any
        norm: Any
        training: bool
        grad_checkpointing: bool

    def embed(self, x: Tensor) -> tuple[Tensor, PositionOptions | None]:
        """Return the tokens that enter the first block, and what the blocks read of positions."""
        raise NotImplementedError(f"{type(self).__name__} has no embed")

    def forward_features(self, x: Tensor, *args: Any, **kw: Any) -> Tensor:
        """Embed images [B, 3, height, width] and run the blocks, pruned if pruning is active."""
        with self.elip.begin(self) as pruning:  # type: ignore[arg-type]
            if pruning is None:
                return super().forward_features(x, *args, **kw)  # type: ignore[misc]
            mask, causal = (*args, None)[0], kw.get("is_causal") or None
            pruning.refuse_mask(attn_mask=kw.get("attn_mask", mask), is_causal=causal)
            tokens, positions = self.embed(x)
            call = call_checkpointed if self.grad_checkpointing else call_block
            features: Tensor = self.norm(pruning.run_blocks(tokens, self.blocks, call, positions))
            return features


def shape_of(trunk: Any, num_patches: int, class_token: bool) -> TowerShape:
    """Return a trunk's numbers; refuse poolings without an image feature."""
    attn_pool = getattr(trunk, "attn_pool", None)
    pooled = attn_pool is not None or trunk.global_pool in ("token", "avg")
    if not pooled or (attn_pool is not None and trunk.global_pool != "map"):
        raise UnsupportedModelError(
            f"timm pooling {trunk.global_pool!r} is not supported: token, avg and map are"
        )
    return TowerShape(
        num_patches=num_patches,
        depth=len(trunk.blocks),
        width=trunk.embed_dim,
        prefix=trunk.num_prefix_tokens,
        class_query=trunk.global_pool == "token" and class_token,
    )


def refuse_dropout(modules: Iterable[nn.Module]) -> None:
    """Refuse parts of blocks with dropout."""
    for module in modules:
        if isinstance(module, nn.Dropout) and module.p > 0:
            raise UnsupportedModelError(
                f"a timm trunk with dropout {module.p:g} in its blocks: choosing tokens must "
                "be deterministic; build it without (timm_drop_path may stay)"
            )


def joined(block: Any) -> tuple[str, ...]:
    """Return the path of what normalizes a block's joined heads; not every timm 1.0 has it."""
    return ("attn.norm",) if hasattr(block.attn, "norm") else ()


def has_stochastic_depth(blocks: Iterable[Any]) -> bool:
    """Whether blocks skip their parts at random."""
    return any(getattr(block.drop_path1, "drop_prob", 0) for block in blocks)


def patch_convolution(trunk: Any) -> nn.Module | None:
    """Return the convolution that embeds patches; a stem of several makes no token of one."""
    embed = trunk.patch_embed
    return embed.proj if type(embed) is PatchEmbed else None


def last_norm(trunk: Any) -> str:
    """Return the name of what normalizes the tokens, or their mean, after the last block."""
    nothing = (nn.Identity, type(None))
    names = (n for n in ("norm", "fc_norm") if not isinstance(getattr(trunk, n, None), nothing))
    return next(names, "")
