"""timm's VisionTransformer as OpenCLIP wraps it (SigLIP, MobileCLIP-B and -L, plain ViTs)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from open_clip.timm_model import TimmModel
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn

from elip_plugin.config import ElipConfig
from elip_plugin.core.score import LOOK, SCORE, attention_row
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.pruner import Pruner
from elip_plugin.patching.swap import Patched, choose_all, swap
from elip_plugin.reducers import tome


class ElipTimmBlock(Patched, Block):
    """A block that can also be asked for one attention row."""

    replaces = Block

    def forward(
        self, x: Tensor, *args: Any, elip: str | None = None, query: Tensor | None = None, **kw: Any
    ) -> Tensor:
        """Run the block, or score tokens.

        Args:
            x: Tokens [B, T, D].
            *args: As in timm.
            elip: None runs the block, "look" without stochastic depth (and dropout is
                refused when patching), "score" gives the row.
            query: The token that asks, [B, 1, D]; None for the class token.
            **kw: As in timm.

        Returns:
            Tokens [B, T, D], or attention [B, T].
        """
        if elip == LOOK:
            x = x + self.ls1(self.attn(self.norm1(x)))
            return x + self.ls2(self.mlp(self.norm2(x)))
        if elip != SCORE:
            return super().forward(x, *args, **kw)
        z, attn = self.norm1(x), self.attn
        return attention_row(
            z,
            z[:, :1] if query is None else self.norm1(query),
            attn.qkv.weight,
            attn.qkv.bias,
            attn.num_heads,
            norms=(attn.q_norm, attn.k_norm),
            scale=attn.scale,
        )


class ElipTimmTrunk(Patched, VisionTransformer):
    """A trunk that prunes between its blocks, outside any checkpointed region."""

    replaces = VisionTransformer

    if TYPE_CHECKING:
        elip: Pruner

    def forward_features(self, x: Tensor, *args: Any, **kw: Any) -> Tensor:
        """Embed the image and run the blocks, with the stages of the plan if pruning is active.

        Args:
            x: Images [B, 3, height, width].
            *args: As in timm; an attention mask runs unpruned.
            **kw: As in timm.

        Returns:
            Tokens [B, T', D].
        """
        if args or kw.get("attn_mask") is not None or not self.elip.active(self.training):
            return super().forward_features(x, *args, **kw)
        x = self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x))))
        x = self.elip.run_blocks(x, self.blocks, self.training, self.grad_checkpointing)
        return self.norm(x)

    def extra_repr(self) -> str:
        """Show the plan where the model is printed."""
        return f"elip: {self.elip.plan.summary()}"


class ElipTimmModel(Patched, TimmModel):
    """OpenCLIP's wrapper, which keeps the plan in step with the resolution."""

    replaces = TimmModel

    def set_input_size(self, image_size: int | tuple[int, int]) -> None:
        """Change the resolution, and the plan with it.

        Args:
            image_size: New size in pixels, one number or (height, width).
        """
        super().set_input_size(image_size)
        self.trunk.elip.replan(self.trunk.patch_embed.num_patches)


def check(visual: Any) -> None:
    """Check that this tower can be pruned.

    Args:
        visual: An `open_clip.timm_model.TimmModel`.

    Raises:
        UnsupportedModelError: If it cannot, with the reason.
    """
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


def patch_tower(visual: Any, config: ElipConfig) -> Pruner:
    """Patch a wrapped timm tower in place.

    Args:
        visual: An `open_clip.timm_model.TimmModel`.
        config: What to prune.

    Returns:
        The tower's pruner.

    Raises:
        UnsupportedModelError: Before anything is changed.
        PlanError: Before anything is changed.
    """
    check(visual)
    tome.refuse(config, "timm's ViT")
    trunk = visual.trunk
    blocks = choose_all(trunk.blocks, {Block: ElipTimmBlock})
    pruner = Pruner(
        config,
        num_patches=trunk.patch_embed.num_patches,
        depth=len(trunk.blocks),
        width=trunk.embed_dim,
        prefix=trunk.num_prefix_tokens,
        class_query=trunk.global_pool == "token" and trunk.cls_token is not None,
    )
    for block, patched in blocks:
        swap(block, patched)
    swap(trunk, ElipTimmTrunk, elip=pruner)
    swap(visual, ElipTimmModel)
    pruner.follow(visual.parameters())
    return pruner
