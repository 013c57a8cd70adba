"""Cluster masking (Wei et al., CVPR 2024; CLIP-PGS, CVPR 2025): similar patches leave.

Some patches are drawn as anchors; they and the patches that look like one of them leave first, then
others at random, until as many are left as the stage keeps. In the first paper the number varies.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from elip_plugin.core.context import StageContext
from elip_plugin.core.merge import take_rows
from elip_plugin.core.precision import exact
from elip_plugin.core.select import Selection
from elip_plugin.core.stage import PlannedStage
from elip_plugin.reducers.pixels import PixelReducer
from elip_plugin.reducers.random import draw

ANCHORS = 0.05
"""Share of the patches that are anchors; at least one is."""

THRESHOLD = 0.5
"""Cosine to an anchor above which a patch counts as similar."""


@dataclass(frozen=True)
class Cluster(PixelReducer):
    """Drop patches that look like a few random ones first, then at random; merge nothing."""

    name = "cluster"
    draws = True
    merges = False

    def decide(self, x: Tensor, stage: PlannedStage, context: StageContext) -> Selection:
        """Decide by the pixels; see `Reducer.decide`."""
        looks = describe_patches(self.patches_of(x, context))
        numbers = draw(x.shape[0], looks.shape[1], x.device)
        anchors = numbers.argsort(dim=1)[:, : max(1, round(ANCHORS * looks.shape[1]))]
        # Those that look like none go after all others; each lot goes in the order of its numbers.
        order = (numbers + ~look_similar(looks, anchors)).argsort(dim=1, descending=True)
        keep = stage.tokens_out - context.prefix
        return Selection(order[:, :keep].sort(dim=1).values, order[:, keep:], None)


def describe_patches(patches: Tensor) -> Tensor:
    """Compute what patches are compared by: their values less their mean, and their mean color.

    Turns pixels [B, C, rows, columns, patch height, patch width] into vectors
    [B, N, C * pixels + C] of length 1, in which a mean color counts as much as its pixels.
    """
    pixels = patches.flatten(4).flatten(2, 3).transpose(1, 2).float()  # [B, N, C, pixels]
    color = pixels.mean(dim=3) * pixels.shape[3] ** 0.5
    shape = (pixels - pixels.mean(dim=(2, 3), keepdim=True)).flatten(2)
    return F.normalize(torch.cat([shape, color], dim=2), dim=2)


def look_similar(looks: Tensor, anchors: Tensor) -> Tensor:
    """Find which of the vectors of length 1 [B, N, E] are like an anchor [B, A]; anchors are."""
    chosen = take_rows(looks, anchors)
    with exact(looks):
        similar = (looks @ chosen.transpose(1, 2)).amax(dim=2) > THRESHOLD
    return similar.scatter(1, anchors, True)  # the cosine of a black patch with itself is 0
