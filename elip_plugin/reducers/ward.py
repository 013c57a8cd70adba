"""Merge similar tokens in every block of a tower that was trained without merging; our extension.

As ToMe, with what a search on DINOv2 found to lose least without any training (docs/pretrained.md):

- Tokens leave as late as a plan allows: the more it keeps, the later. How many enter the last block
  is fixed by that share, and how early the others leave follows from it.
- Tokens are compared by their keys, averaged over heads, and by themselves, after the attention:
  each one with all others, not with those of another set. The pairs of a block are chosen in four
  rounds, after each of which a group that has grown costs more.
- The cost of a pair is that of Ward's clustering (JASA 1963), of which the root is taken: its
  distance times (a b / (a + b)) ** 0.5. So no group grows over the whole of a picture. Ward's a and
  b are the numbers of patches that the tokens stand for. Here they are how much depends on a token:
  its norm times the root of that number and of the class token's attention to it, if there is one.
- A merged token has the mean of its patches' norms, where an average of vectors is shorter: blocks
  normalize their tokens anyway. The attention's values are multiplied by the root of how much
  shorter it is.
- Tokens stay in the order of the picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from elip_plugin.core.merge import after_prefix, take_rows
from elip_plugin.core.precision import exact, wide
from elip_plugin.reducers.tome import Pairs, ToMe, keeping, rows, shrinking

LAST = 0.57
"""Share of the patches that enters the last block, over the square of the share of all blocks."""

EARLIEST, LATEST, FLATTER = 0.75, 16.0, 1.25
"""Before a block at x (0 to 1) 1 - (1 - x ** power) ** FLATTER of all that leave have left."""

ROUNDS = 4
"""Rounds in which a block's pairs are chosen; one after the other would lose a little less."""

CANDIDATES, MOST = 3, 150
"""Tokens compared besides the r that leave: this many times r, and their largest number."""

LEAST = 1e-12
"""Of what depends on a token, which may be 0."""


class Anywhere(Pairs):
    """Pairs of any tokens, as indices of those after the prefix, which stay in their order.

    None of `into` is in `gone`.
    """

    def left(self) -> Tensor:
        """Return which tokens are left, as increasing indices [B, T - P - r]."""
        return self.stay

    def groups(self) -> Tensor:
        """Return the token after the merging that each one of those before it is in [B, T - P]."""
        stays, gone = self.stay.shape[1], self.gone.shape[1]
        place = self.stay.new_zeros(self.stay.shape[0], stays + gone)
        numbers = torch.arange(stays, device=place.device).expand_as(self.stay)
        place = place.scatter(1, self.stay, numbers)
        return place.scatter(1, self.gone, place.gather(1, self.into))


@dataclass(frozen=True)
class Ward(ToMe):
    """Merge similar tokens inside every block, small groups before large ones."""

    name = "ward"
    weighs = True
    pairs: ClassVar[type[Pairs]] = Anywhere
    plan: ClassVar[Mapping[str, Any]] = keeping(0.73)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # For weights that are there, pruned in evaluation (docs/pretrained.md).
        "embed": {**keeping(0.73), "eval_mode": "image"},
    }

    def entering(self, num_patches: int, depth: int, removed: int) -> list[int]:
        """Return how many patches enter each block; see `ToMe.entering`.

        Where tokens would have to leave too early, each block keeps the same share of its tokens.
        """
        keep = 1 - removed / (num_patches * depth)
        low, high = EARLIEST, LATEST
        for _ in range(50):
            power = (low + high) / 2
            saved = num_patches * depth - sum(_falling(num_patches, depth, keep, power))
            low, high = (power, high) if saved > removed else (low, power)
        left = _falling(num_patches, depth, keep, low)
        if num_patches * depth - sum(left) >= removed or 2 * removed <= depth * (num_patches + 1):
            return left  # a tower of few blocks: as many as it can spare, as ToMe does
        return shrinking(num_patches, depth, depth - removed / num_patches)

    def match(self, keys: Tensor, x: Tensor, sizes: Tensor, remove: int, prefix: int) -> Pairs:
        """Choose the pairs that cost least; see `ToMe.match`."""
        with torch.no_grad(), exact(x):
            keys, tokens, weights = wide(keys.detach()), wide(x.detach()), sizes
            if keys.shape[2] > x.shape[1]:
                logits = keys[:, :, :1] @ keys[:, :, 1:].mT + sizes.log()[:, None, None]
                attention = logits.softmax(dim=-1).mean(dim=1).squeeze(1)
                keys, weights = keys[:, :, 1:], (sizes * attention).sqrt()
            lengths = norm(tokens)
            weights = (weights * lengths.squeeze(-1))[:, prefix:].clamp(min=LEAST)
            keys = F.normalize(keys.mean(dim=1)[:, prefix:], dim=-1)
            tokens = tokens[:, prefix:] / lengths[:, prefix:].clamp(min=LEAST)
            return cheapest(keys, tokens, weights, remove)

    def merge(
        self, x: Tensor, sizes: Tensor, resultants: Tensor | None, pairs: Pairs, prefix: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Average pairs by their sizes, at the mean of their norms; see `ToMe.merge`."""
        left = after_prefix(pairs.left(), prefix)
        gone, into = pairs.gone + prefix, pairs.groups().gather(1, pairs.gone) + prefix
        added = sizes.gather(1, gone)
        total = sizes.gather(1, left).scatter_add(1, into, added)
        share = (added / total.gather(1, into)).unsqueeze(-1)

        def averaged(y: Tensor) -> Tensor:
            # Only what is merged into changes, by its group's shares of the way to each token.
            out, leave = take_rows(y, left), take_rows(y, gone)
            return out.scatter_add(1, rows(into, y), share * (leave - take_rows(out, into)))

        tokens = wide(x)
        out = averaged(tokens)
        # The norm scales what is averaged, and is not taught.
        longer, shrunk = averaged(norm(tokens)), norm(out)
        scale = torch.where(shrunk > 0, longer / shrunk, 1.0)
        out = out * scale
        before = torch.ones_like(sizes) if resultants is None else resultants
        after = (averaged(before.unsqueeze(-1)) / scale).squeeze(-1)
        if out.dtype != x.dtype:  # as long as its patches, an average may have larger values
            most = torch.finfo(x.dtype).max
            out = out.clamp(-most, most).to(x.dtype)
        return out, total.detach(), after.detach()


def cheapest(keys: Tensor, tokens: Tensor, weights: Tensor, remove: int) -> Anywhere:
    """Choose the tokens whose merging costs least, in rounds, between which the weights add up.

    Each token may go into one before it, hence every pair is there once, and nothing goes round.
    Only tokens take part that are cheapest by their own weight and by keys alone, of which an angle
    above 90 degrees counts as 90.

    Args:
        keys: Normalized keys [B, N, D / H].
        tokens: Normalized tokens [B, N, D].
        weights: Of tokens [B, N], above 0.
        remove: Tokens r that leave.

    Returns:
        The pairs.
    """
    size = keys.shape[1]
    numbers = torch.arange(size, device=keys.device).expand_as(weights)
    nearest = (keys @ keys.transpose(1, 2)).tril_(-1).amax(dim=2)
    least = (1 - nearest).square() * weights
    compared = remove + min(CANDIDATES * remove, MOST)
    order = least.sort(dim=1, stable=True).indices[:, :compared]
    # Costs are compared by their squares.
    both = torch.cat([keys, tokens], dim=2)
    squares = both.new_full((), 2).where(order[:, :, None] > numbers[:, None], torch.inf)
    squares = squares.baddbmm(take_rows(both, order), both.mT, alpha=-1).square_()
    groups, left, rounds = numbers, [], min(ROUNDS, remove)
    for i in range(rounds):
        count = remove * (i + 1) // rounds - remove * i // rounds
        parts = weights.reciprocal()
        costs = parts.gather(1, order)[:, :, None] + parts[:, None]
        least, partner = torch.div(squares, costs, out=costs).min(dim=2)
        chosen = least.sort(dim=1, stable=True).indices[:, :count]
        gone = order.gather(1, chosen)
        into = numbers.scatter(1, gone, partner.gather(1, chosen))
        for _ in range((count - 1).bit_length()):  # a partner may leave in the same round
            into = into.gather(1, into)
        groups = into.gather(1, groups)
        weights = weights.scatter_add(1, into.gather(1, gone), weights.gather(1, gone))
        squares.scatter_(1, rows(chosen, squares), torch.inf)
        squares.scatter_(2, gone[:, None].expand(-1, squares.shape[1], -1), torch.inf)
        left.append(gone)
    gone = torch.cat(left, dim=1)
    stay = numbers.scatter(1, gone, size).sort(dim=1).values[:, : size - remove]
    return Anywhere(gone, stay, groups.gather(1, gone), 0)


def norm(x: Tensor) -> Tensor:
    """Return the lengths [B, N, 1] of tokens [B, N, D], without gradient."""
    lengths: Tensor = torch.linalg.vector_norm(x.detach(), dim=-1, keepdim=True)
    return lengths


def _falling(num_patches: int, depth: int, keep: float, power: float) -> list[int]:
    """Return how many patches enter each block: the larger the power, the later they leave."""
    # The second: no more leave than is asked for, even if all of them leave in the last block.
    left, last = [num_patches], max(LAST * keep**2, 1 - depth * (1 - keep))
    for i in range(1, depth):
        gone = 1 - (1 - (i / (depth - 1)) ** power) ** FLATTER
        wanted = round(num_patches * (1 - (1 - last) * gone))
        left.append(max(wanted, left[-1] - left[-1] // 2, 1))
    return left
