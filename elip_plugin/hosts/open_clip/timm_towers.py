"""timm's trunks as OpenCLIP wraps them.

VisionTransformer (SigLIP, MobileCLIP-B and -L), Eva (EVA01, EVA02, the Perception Encoder), and
NaFlexVit (SigLIP 2 NaFlex), whose images each have their own number of patches.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from typing import Any

import torch
from open_clip.timm_model import TimmModel
from timm.layers import PatchEmbed
from timm.models.eva import Eva, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from elip_plugin.errors import UnsupportedModelError
from elip_plugin.hosts.open_clip.grid import grid_of
from elip_plugin.hosts.open_clip.timm_blocks import eva_parts, plain_parts
from elip_plugin.patching.calls import thread
from elip_plugin.patching.description import Tower
from elip_plugin.patching.forward import Forward
from elip_plugin.patching.named import NamedAsReplaced, patched_class
from elip_plugin.patching.rotary import rotations
from elip_plugin.patching.runner import Calling, PrunedTower, entry_of
from elip_plugin.patching.swap import Swap

EVA = (EvaBlock, EvaBlockPostNorm)
TRUNKS: tuple[type, ...] = (VisionTransformer, Eva)
NAFLEX: Any = None
if importlib.util.find_spec("timm.models.naflexvit") is not None:  # since timm 1.0.16
    from timm.models.naflexvit import NaFlexVit

    NAFLEX = NaFlexVit
    TRUNKS = (*TRUNKS, NaFlexVit)


class ResizedTower(NamedAsReplaced):
    """OpenCLIP's wrapper, which keeps the plan in step with the resolution."""

    def set_input_size(self, image_size: int | tuple[int, int]) -> None:
        """Change the resolution, and the plan with it."""
        super().set_input_size(image_size)  # type: ignore[misc]
        self.elip.replan(math.prod(grid_of(self)))


class NaFlexTower(PrunedTower):
    """A trunk that prunes each image by its own number of patches."""

    @classmethod
    def body_for(cls, replaces: Any, *data: Any) -> dict[str, Any]:
        """Return the methods that are one forward, of which one computes features by groups."""
        host = replaces.forward_features

        @functools.wraps(host)
        def by_groups(self: Any, *args: Any, **options: Any) -> Any:
            return self.elip_features(host, args, options)

        return {**super().body_for(replaces, *data), "forward_features": entry_of(by_groups)}

    def elip_features(self, host: Any, args: Any, options: Any) -> Any:
        """Compute features; of padded patches in groups of images with equal numbers of them."""
        names = ("patches", "patch_coord", "patch_valid", "attn_mask")
        given: dict[str, Any] = {**dict(zip(names, args)), **options}
        tensors: list[Any] = [given.get(name) for name in names]
        patches, places, valid, mask = tensors
        forward = self.elip.current()
        if forward is None or not forward.level or valid is None:
            return host(self, *args, **options)
        if mask is not None:
            raise UnsupportedModelError(
                "attn_mask is given to a pruned forward of NaFlexVit, whose tokens become fewer "
                "than it is for: leave it out, or run it inside `handle.disabled()`"
            )
        if forward.trace is not None:
            raise UnsupportedModelError(
                "a batch of images with different numbers of patches cannot be traced: trace "
                "images [B, 3, height, width]"
            )
        valid, prefix = valid.bool(), self.elip.shape.prefix
        counts = valid.sum(dim=1)
        numbers = counts.unique().tolist()
        groups = [(counts == number).nonzero().squeeze(1) for number in numbers]
        made = []
        for rows, count, part in zip(
            groups, numbers, self.elip.parts(forward, groups), strict=True
        ):
            own = [x[rows][valid[rows]].unflatten(0, (len(rows), count)) for x in (patches, places)]
            made.append((rows, self._run_group(host, part, own)))
        forward.level = 0.0  # its groups have done what there was to do
        longest = max(x.shape[1] for _, x in made)
        order = torch.cat([rows for rows, _ in made]).argsort()
        padded = [nn.functional.pad(x, (0, 0, 0, longest - x.shape[1])) for _, x in made]
        left = [torch.arange(longest - prefix) < x.shape[1] - prefix for _, x in made]
        real = [row.expand(len(rows), -1) for (rows, _), row in zip(made, left)]
        return {
            "patches": torch.cat(padded)[order],
            "patch_valid": torch.cat(real).to(valid.device)[order],
        }

    def _run_group(self, host: Any, group: Forward, own: list[Tensor]) -> Tensor:
        """Run the blocks on images of equal numbers of patches."""
        before = thread.innermost
        thread.innermost = (self.elip, group, before)
        try:
            tokens: Tensor = host(self, *own, None)["patches"]
        finally:
            thread.innermost = before
        return tokens


def describe(visual: Any) -> Tower:
    """Describe a wrapped timm tower; see `Host.describe`."""
    trunk = visual.trunk
    kind = type(trunk)
    if kind not in TRUNKS:
        raise UnsupportedModelError(
            f"timm trunk {kind.__name__} is not supported: timm's "
            f"{', '.join(sorted(cls.__name__ for cls in TRUNKS))} are"
        )
    blocks, embed = trunk.blocks, getattr(trunk, "patch_embed", None)
    first, class_token = blocks[0], _has_class_token(trunk)
    more: dict[str, Any] = {}
    if isinstance(first, EVA):
        if getattr(trunk, "rope_mixed", False) or getattr(trunk, "rope_is_mixed", False):
            raise UnsupportedModelError(
                f"a timm {kind.__name__} with rotary positions of its own in each block: those "
                "that all blocks share are supported"
            )
        rotary = trunk.rope is not None
        more["parts"] = {type(b): eva_parts(b, rotary) for b in blocks if isinstance(b, EVA)}
        more["calling"] = Calling(positions=("rope",), positions_for=rotations)
    else:
        more["parts"] = {type(b): plain_parts(b) for b in blocks if type(b) is Block}
        more["scale"] = first.attn.scale
    if kind is NAFLEX:
        more |= {"kind": NaFlexTower, "scale": first.attn.scale}
    return Tower(
        trunk,
        "blocks",
        num_patches=math.prod(grid_of(visual)),
        width=trunk.embed_dim,
        prefix=trunk.num_prefix_tokens,
        class_query=class_token and _reads_class_token(trunk),
        norm=_last_norm(trunk),
        # A stem of several convolutions makes no token of one patch.
        patch_embed="patch_embed.proj" if type(embed) is PatchEmbed else "",
        entries=("forward", "forward_features"),
        restores=trunk.global_pool != "token",
        swaps=(Swap(visual, patched_class(ResizedTower, TimmModel)),),
        **more,
    )


def _has_class_token(trunk: Any) -> bool:
    if hasattr(trunk, "has_class_token"):  # of NaFlexVit
        return bool(trunk.has_class_token)
    return trunk.cls_token is not None


def _reads_class_token(trunk: Any) -> bool:
    """Tell whether the pooling reads the class token; refuse one without an image feature."""
    attn_pool, pool = getattr(trunk, "attn_pool", None), trunk.global_pool
    if (attn_pool is not None) != (pool == "map") or pool not in ("token", "avg", "map"):
        raise UnsupportedModelError(
            f"timm pooling {pool!r} is not supported: token, avg and map are"
        )
    return pool == "token" or (pool == "map" and type(trunk) is Eva)


def _last_norm(trunk: Any) -> str:
    """Return the name of what normalizes the tokens, or their mean, after the last block."""
    nothing = (nn.Identity, type(None))
    names = (n for n in ("norm", "fc_norm") if not isinstance(getattr(trunk, n, None), nothing))
    return next(names, "")
