"""timm's VisionTransformer as OpenCLIP wraps it (SigLIP, MobileCLIP-B and -L, plain ViTs)."""

from __future__ import annotations

from typing import Any

from open_clip.timm_model import TimmModel
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn

from elip_plugin.core.blocks import PackedAttention
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.blocks import PrunableBlock, PrunableStack, call_block, call_checkpointed
from elip_plugin.patching.install import Tower
from elip_plugin.patching.pruner import TowerShape
from elip_plugin.patching.swap import Patched, Swap, choose_all


class ElipTimmBlock(PrunableBlock, Block):
    """timm's block, with its parts; dropout is refused, stochastic depth may be there."""

    replaces = Block

    def packed_attention(self) -> PackedAttention:
        """Return the attention's projections."""
        attn = self.attn
        qkv, norms = attn.qkv, (attn.q_norm, attn.k_norm)
        return PackedAttention(self.norm1, qkv.weight, qkv.bias, attn.num_heads, *norms)

    def attention_output(self, mixed: Tensor) -> Tensor:
        """Join the heads and project; see `BlockParts`."""
        joined = getattr(self.attn, "norm", nn.Identity())(mixed.transpose(1, 2).flatten(2))
        return self.ls1(self.attn.proj(joined))

    def feed_forward(self, x: Tensor) -> Tensor:
        """Run the MLP; see `BlockParts`."""
        return self.ls2(self.mlp(self.norm2(x)))

    def stochastic_depth(self, added: Tensor) -> Tensor:
        """Apply stochastic depth; see `BlockParts`."""
        return self.drop_path1(added)


class ElipTimmTrunk(PrunableStack, VisionTransformer):
    """A trunk that prunes between its blocks, outside any checkpointed region."""

    replaces = VisionTransformer

    def forward_features(self, x: Tensor, *args: Any, **kw: Any) -> Tensor:
        """Embed images [B, 3, height, width] and run the blocks; with a mask unpruned."""
        pruner = self.elip
        active = pruner.enabled and (self.training or pruner.eval_mode != "full")
        if args or kw.get("attn_mask") is not None or not active:
            return super().forward_features(x, *args, **kw)
        embedded = self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x))))
        pruning = pruner.begin(embedded.shape[1] - pruner.shape.prefix, self.training)
        call = call_checkpointed if self.grad_checkpointing else call_block
        if pruning is not None:
            return self.norm(pruning.run_blocks(embedded, self.blocks, call))
        for block in self.blocks:
            embedded = call(block, embedded)
        return self.norm(embedded)


class ElipTimmModel(Patched, TimmModel):
    """OpenCLIP's wrapper, which keeps the plan in step with the resolution."""

    replaces = TimmModel

    def set_input_size(self, image_size: int | tuple[int, int]) -> None:
        """Change the resolution, and the plan with it."""
        super().set_input_size(image_size)
        self.trunk.elip.replan(self.trunk.patch_embed.num_patches)


def describe(visual: Any) -> Tower:
    """Describe a wrapped timm tower; see `Host.describe`."""
    trunk = visual.trunk
    if type(trunk) is not VisionTransformer:
        raise UnsupportedModelError(
            f"timm trunk {type(trunk).__name__} is not supported: only timm's VisionTransformer is"
        )
    pooled = trunk.attn_pool is not None or trunk.global_pool in ("token", "avg")
    if not pooled or (trunk.attn_pool is not None and trunk.global_pool != "map"):
        raise UnsupportedModelError(
            f"timm pooling {trunk.global_pool!r} is not supported: token, avg and map are"
        )
    for block in trunk.blocks:
        if type(block.attn) is not Attention:
            raise UnsupportedModelError(
                f"attention {type(block.attn).__name__} is not supported: timm's Attention is"
            )
        for module in block.modules():
            if isinstance(module, nn.Dropout) and module.p > 0:
                raise UnsupportedModelError(
                    f"a timm trunk with dropout {module.p:g} in its blocks: choosing tokens must "
                    "be deterministic; build it without (timm_drop_path may stay)"
                )
    shape = TowerShape(
        num_patches=trunk.patch_embed.num_patches,
        depth=len(trunk.blocks),
        width=trunk.embed_dim,
        prefix=trunk.num_prefix_tokens,
        class_query=trunk.global_pool == "token" and trunk.cls_token is not None,
    )
    random_depth = any(getattr(block.drop_path1, "drop_prob", 0) for block in trunk.blocks)
    return Tower(
        shape,
        Swap(trunk, ElipTimmTrunk),
        choose_all(trunk.blocks, {Block: ElipTimmBlock}, elip_scale=trunk.blocks[0].attn.scale),
        (Swap(visual, ElipTimmModel),),
        random_blocks=random_depth,
        module=visual,
    )
