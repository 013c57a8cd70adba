"""Merge similar tokens in every block of a tower that was trained without merging; our extension.

As ToMe, with what a search on DINOv2 found to lose least without any training (docs/pretrained.md):

- More tokens leave in early blocks than in late ones: in proportion to the root of the blocks that
  are left.
- Tokens are compared by their keys, averaged over heads, and by themselves, after the attention.
- The cost of a pair is that of Ward's clustering (JASA 1963), of which a power is taken: its
  distance times (a b / (a + b)) ** 0.4, where a and b are how many patches its tokens stand for. So
  no group grows over the whole of a picture.
- A merged token has the mean of its patches' norms, where an average of vectors is shorter.
- Tokens stay in the order of the picture, so that the two sets that are matched alternate in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from elip_plugin.core.precision import exact, wide
from elip_plugin.errors import PlanError
from elip_plugin.reducers.tome import Pairs, ToMe, keeping, rows

POWER = 0.4
"""Of a pair's weight in its cost: 1 in Ward's clustering, 0 in ToMe."""


class InOrder(Pairs):
    """Pairs after whose merging the tokens stay in their order."""

    def left(self) -> Tensor:
        """Return which tokens are left, as increasing indices [B, T - P - r]."""
        return super().left().sort(dim=1).values

    def groups(self) -> Tensor:
        """Return the token after the merging that each one of those before it is in [B, T - P]."""
        total = self.stay.shape[1] + self.gone.shape[1] + self.second
        stays = self.stay.new_ones(self.stay.shape[0], total).scatter(1, 2 * self.gone, 0)
        place = stays.cumsum(dim=1) - 1
        return place.scatter(1, 2 * self.gone, place.gather(1, 2 * self.into + 1))


@dataclass(frozen=True)
class Ward(ToMe):
    """Merge similar tokens inside every block, small groups before large ones."""

    name = "ward"
    pairs: ClassVar[type[Pairs]] = InOrder
    plan: ClassVar[Mapping[str, Any]] = keeping(0.73)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # For weights that are there, pruned in evaluation (docs/pretrained.md).
        "embed": {**keeping(0.73), "eval_mode": "image"},
    }

    def entering(self, num_patches: int, depth: int, removed: int) -> list[int]:
        """Return how many patches enter each block; see `ToMe.entering`."""
        least = _falling(num_patches, depth, float(num_patches))
        if num_patches * depth - removed < sum(least) - depth / 2:
            if 2 * removed <= depth * (num_patches + 1):
                return least  # a tower of few blocks: as many as it can spare, as ToMe does
            raise PlanError(
                f"reducer 'ward' merges pairs, hence at most half of the tokens in a block: of "
                f"{depth} blocks' tokens it leaves {sum(least) / num_patches / depth:.2f} or more, "
                f"and the stages ask for {1 - removed / num_patches / depth:.2f}; keep more, or "
                "use the reducer pool"
            )
        low, high = 0.0, float(num_patches)
        for _ in range(50):
            rate = (low + high) / 2
            saved = num_patches * depth - sum(_falling(num_patches, depth, rate))
            low, high = (rate, high) if saved < removed else (low, rate)
        return _falling(num_patches, depth, high)

    def match(self, keys: Tensor, x: Tensor, sizes: Tensor, remove: int, prefix: int) -> Pairs:
        """Choose the pairs that cost least; see `ToMe.match`."""
        with torch.no_grad(), exact(x):
            heads, tokens = wide(keys.detach()).mean(dim=1), wide(x.detach())
            costs = 2 - cosines(heads[:, prefix:]) - cosines(tokens[:, prefix:])
            counts = sizes[:, prefix:]
            a, b = counts[:, ::2, None], counts[:, None, 1::2]
            least, partner = (costs * (a * b / (a + b)) ** POWER).min(dim=2)
            order = least.sort(dim=1, stable=True).indices
            gone, stay = order[:, :remove], order[:, remove:].sort(dim=1).values
            return InOrder(gone, stay, partner.gather(1, gone), costs.shape[2])

    def merge(self, x: Tensor, sizes: Tensor, pairs: Pairs, prefix: int) -> tuple[Tensor, Tensor]:
        """Average pairs by their sizes, at the mean of their norms; see `ToMe.merge`."""
        head = torch.arange(prefix, device=x.device).expand(x.shape[0], -1)
        left = torch.cat([head, pairs.left() + prefix], dim=1)
        gone = 2 * pairs.gone + prefix
        into = pairs.groups().gather(1, 2 * pairs.gone) + prefix
        added = sizes.gather(1, gone)
        total = sizes.gather(1, left).scatter_add(1, into, added)
        share = (added / total.gather(1, into)).unsqueeze(-1)
        # Only those that are merged into change, by their groups' shares of the way to each token.
        out, leave = wide(x.gather(1, rows(left, x))), wide(x.gather(1, rows(gone, x)))
        meet = out.gather(1, rows(into, x))
        out = out.scatter_add(1, rows(into, x), share * (leave - meet))
        # The norm scales what is averaged, and is not taught.
        longer = torch.zeros_like(total).scatter_add(
            1, into, (share * (norm(leave) - norm(meet))).squeeze(-1)
        )
        shrunk = norm(out.gather(1, rows(into, x))).clamp(min=torch.finfo(out.dtype).tiny)
        scale = (norm(meet).squeeze(-1) + longer.gather(1, into)) / shrunk.squeeze(-1)
        out = out * torch.ones_like(total).scatter(1, into, scale).unsqueeze(-1)
        if out.dtype != x.dtype:  # as long as its patches, an average may have larger values
            most = torch.finfo(x.dtype).max
            out = out.clamp(-most, most).to(x.dtype)
        return out, total.detach()


def cosines(x: Tensor) -> Tensor:
    """Compare tokens [B, N, D] at even places with those at odd ones."""
    x = F.normalize(x, dim=-1)
    return x[:, ::2] @ x[:, 1::2].transpose(1, 2)


def norm(x: Tensor) -> Tensor:
    """Return the lengths [B, N, 1] of tokens [B, N, D], without gradient."""
    lengths: Tensor = torch.linalg.vector_norm(x.detach(), dim=-1, keepdim=True)
    return lengths


def _falling(num_patches: int, depth: int, rate: float) -> list[int]:
    """Return how many patches enter each block, if at most `rate` leave in block 0 of 12."""
    left, wanted = [num_patches], 0.0
    for i in range(depth - 1):
        wanted += rate * ((depth - i) / depth) ** 0.5
        left.append(max(num_patches - round(wanted), left[-1] - left[-1] // 2, 1))
    return left
