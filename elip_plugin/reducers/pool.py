"""Lower resolution first (RECLIP, CLIPF): 2 x 2 patches become one token at the tower's input.

Meant with `final_unpruned`: a training at a quarter of the tokens that ends at all of them. The
picture is halved per side before it is embedded, as in the papers; each embedding then stands for
2 x 2 patches, until the four tokens, whose positions differ, are averaged into one. So the data and
the tower stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from elip_plugin.core.context import StageContext
from elip_plugin.core.precision import wide
from elip_plugin.core.stage import PlannedStage
from elip_plugin.errors import PlanError
from elip_plugin.reducers.pixels import PixelReducer, split_patches

DOWNSCALE = 2
"""By how much the sides of a picture shrink."""

KEEP = 0.25
"""The share of the tokens that is left."""


@dataclass(frozen=True)
class Pool(PixelReducer):
    """Average the tokens of 2 x 2 neighboring patches at the input."""

    name = "pool"
    returns = False
    plan: ClassVar[Mapping[str, Any]] = {"stages": [{"block": 0, "lookahead": 1, "keep": KEEP}]}
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # Low resolution first (RECLIP, CLIPF), with an unpruned end.
        "lowres": {
            "stages": [{"block": 0, "lookahead": 1, "keep": KEEP}],
            "reference_depth": 12,
            "final_unpruned": 0.4,
        }
    }

    def config_faults(self, config: Any) -> list[str]:
        """Refuse other keep ratios; see `Reducer.config_faults`."""
        faults = super().config_faults(config)
        keeps = [stage.keep for stage in config.stages]
        if any(keep != KEEP for keep in keeps):
            faults.append(f"reducer {self.name!r} keeps {KEEP} of the tokens, got keep {keeps}")
        if config.warmup:
            faults.append(
                f"reducer {self.name!r} has no keep ratio but {KEEP}, so warmup has no steps in "
                "between: leave it out; final_unpruned may stay"
            )
        return faults

    def embed(
        self, embedding: Callable[[Tensor], Tensor], images: Tensor, patch: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Embed the picture at half its side; see `PixelReducer.embed`.

        Each embedding stands for 2 x 2 patches: there are as many as the tower expects, so that
        what it adds to them fits.
        """
        patches = split_patches(images.detach(), patch)
        rows, columns = patches.shape[2:4]
        small = embedding(shrink(images, DOWNSCALE, (rows, columns), patch))
        repeated = small.repeat_interleave(DOWNSCALE, 2).repeat_interleave(DOWNSCALE, 3)
        return repeated[:, :, :rows, :columns], patches

    def resolve_stages(
        self, stages: tuple[PlannedStage, ...], *, num_patches: int, depth: int, prefix: int
    ) -> tuple[PlannedStage, ...]:
        """Leave a token per square, smaller ones at the edge too; see `Reducer.resolve_stages`."""
        side = math.isqrt(num_patches)
        if side**2 == num_patches:
            keep = (-(-side // 2)) ** 2
        elif num_patches % 4 == 0:
            keep = num_patches // 4
        else:
            raise PlanError(
                f"reducer 'pool' averages 2 x 2 patches, which {num_patches} patches do not fill: "
                "choose a square picture, or an even number of rows and columns"
            )
        return tuple(replace(s, keep=keep, tokens_out=prefix + keep) for s in stages)

    def run_block(
        self, i: int, x: Tensor, stages: Mapping[int, PlannedStage], context: StageContext
    ) -> Tensor:
        """Average before block 0; see `Reducer.run_block`."""
        if i not in stages:
            return super().run_block(i, x, stages, context)
        rows, columns = self.patches_of(x, context).shape[2:4]
        if rows != columns and (rows % 2 or columns % 2):
            raise PlanError(
                f"reducer 'pool' averages 2 x 2 patches, which a grid of {rows} x {columns} has "
                "not: choose a square picture, or an even number of rows and columns"
            )
        if context.positions is not None:
            context.take(upper_left(x.shape[0], rows, columns, x.device))
        groups, squares = squares_of(x.shape[0], rows, columns, x.device)
        context.follow(groups)
        if context.trace is not None:
            context.trace.record_groups(i, groups, squares)
        after: Tensor = context.blocks[i](pool(x, context.prefix, rows, columns))
        return after


def shrink(images: Tensor, downscale: int, grid: tuple[int, int], patch: tuple[int, int]) -> Tensor:
    """Shrink images [B, C, height, width] of a grid of patches to 1 / downscale per side.

    Returns images of ceil(rows / downscale) x ceil(columns / downscale) patches of `patch` pixels,
    or a few pixels more.
    """
    if not any(count % downscale for count in grid):
        return F.avg_pool2d(images, downscale)
    height, width = (-(-count // downscale) * side for count, side in zip(grid, patch))
    return F.interpolate(images, (height, width), mode="bilinear", antialias=True)


def pool(x: Tensor, prefix: int, rows: int, columns: int) -> Tensor:
    """Average the tokens of 2 x 2 neighboring patches; at an odd edge, of those that are there.

    Turns tokens [B, P + rows * columns, D] into [B, P + ceil(rows / 2) * ceil(columns / 2), D].
    """
    grid = wide(x[:, prefix:]).transpose(1, 2).reshape(x.shape[0], -1, rows, columns)
    pooled = F.avg_pool2d(grid, 2, ceil_mode=True).flatten(2).transpose(1, 2)
    return torch.cat([x[:, :prefix], pooled.to(x.dtype)], dim=1)


def upper_left(batch: int, rows: int, columns: int, device: torch.device) -> Tensor:
    """Return the positions of pooled tokens, where blocks read positions.

    Offsets between the upper left patches of two squares are those between their centers. Indices
    of patches [B, ceil(rows / 2) * ceil(columns / 2)].
    """
    index = torch.arange(rows * columns, device=device).view(rows, columns)
    return index[::2, ::2].flatten().expand(batch, -1)


def squares_of(batch: int, rows: int, columns: int, device: torch.device) -> tuple[Tensor, int]:
    """Return the square that each patch is in [B, rows * columns], and how many there are."""
    down, across = torch.arange(rows, device=device) // 2, torch.arange(columns, device=device) // 2
    wide = -(-columns // 2)
    groups = (down[:, None] * wide + across).flatten().expand(batch, -1)
    return groups, -(-rows // 2) * wide
