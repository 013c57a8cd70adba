"""Lower resolution first (RECLIP, CLIPF): 2 x 2 patches become one token at the tower's input.

Meant with `final_unpruned`: a training at a quarter of the tokens that ends at all of them. The
picture is halved per side before it is embedded, as in the papers; each embedding then stands for
2 x 2 patches, until the four tokens, whose positions differ, are averaged into one. So the data and
the tower stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from elip_plugin.errors import PlanError
from elip_plugin.reducers.base import BlockCall, PlannedStage, Reducer, StageContext


class Pool(Reducer):
    """Average the tokens of 2 x 2 neighbouring patches at the input."""

    name = "pool"
    traceable = False
    scores = False
    reads_pixels = True  # for the grid
    at_input = True
    only_keep = 0.25
    downscale = 2

    def tokens(
        self, stages: tuple[PlannedStage, ...], *, num_patches: int, depth: int, prefix: int
    ) -> tuple[PlannedStage, ...]:
        """Leave a quarter and no merged token; see `Reducer.tokens`."""
        if num_patches % 4:
            raise PlanError(
                f"reducer 'pool' averages 2 x 2 patches, which {num_patches} patches do not fill: "
                "choose a resolution or patch size with an even number of rows and columns"
            )
        return tuple(replace(stage, tokens_out=prefix + stage.keep) for stage in stages)

    def run(
        self,
        x: Tensor,
        stages: Mapping[int, PlannedStage],
        context: StageContext,
        call: BlockCall | None = None,
    ) -> Tensor:
        """Average, then run all blocks; see `Reducer.run`."""
        assert context.patches is not None
        rows, columns = context.patches.shape[2:4]
        if context.positions is not None:
            context = context.at(
                context.positions.take(upper_left(len(x), rows, columns, x.device))
            )
        return super().run(pool(x, context.prefix, rows, columns), {}, context, call)


def pool(x: Tensor, prefix: int, rows: int, columns: int) -> Tensor:
    """Average the tokens of 2 x 2 neighbouring patches.

    Args:
        x: Tokens [B, P + rows * columns, D], row by row.
        prefix: Prefix tokens P, which stay.
        rows: Rows of patches, an even number.
        columns: Columns of patches, an even number.

    Returns:
        Tokens [B, P + rows * columns / 4, D], row by row.
    """
    grid = x[:, prefix:].reshape(len(x), rows // 2, 2, columns // 2, 2, -1)
    return torch.cat([x[:, :prefix], grid.mean(dim=(2, 4)).flatten(1, 2)], dim=1)


def upper_left(batch: int, rows: int, columns: int, device: torch.device) -> Tensor:
    """Return the positions of pooled tokens, where blocks read positions.

    Offsets between the upper left patches of two squares are those between their centres.

    Args:
        batch: Images, B.
        rows: Rows of patches, an even number.
        columns: Columns of patches, an even number.
        device: Where the tokens are.

    Returns:
        Indices of patches [B, rows * columns / 4].
    """
    index = torch.arange(rows * columns, device=device).view(rows, columns)
    return index[::2, ::2].flatten().expand(batch, -1)
