"""Reducers of others that the package does not have, as we read their papers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from scipy.cluster.hierarchy import linkage
from torch import Tensor

from elip_plugin import register_reducer
from elip_plugin.reducers import (
    Anywhere,
    Pairs,
    PlannedStage,
    StageContext,
    ToMe,
    merge_pairs,
)


@dataclass(frozen=True)
class ToMeFalling(ToMe):
    """ToMe with its second schedule: what leaves falls linearly, to none in the last block."""

    name = "tome-falling"

    def entering(self, num_patches: int, depth: int, removed: int) -> list[int]:
        """Return how many patches enter each block; see `ToMe.entering`."""
        low, high = 0.0, float(num_patches)
        left = [num_patches] * depth
        for _ in range(50):
            rate, left = (low + high) / 2, [num_patches]
            for i in range(depth - 1):
                leave = min(round(rate * (1 - i / (depth - 1))), left[-1] // 2)
                left.append(left[-1] - leave)
            saved = num_patches * depth - sum(left)
            low, high = (rate, high) if saved < removed else (low, rate)
        return left


@dataclass(frozen=True)
class _MergesAnywhere(ToMe):
    """What merges pairs of any two tokens."""

    name = "merges-anywhere"
    pairs: ClassVar[type[Pairs]] = Anywhere

    def merge(
        self, x: Tensor, sizes: Tensor, resultants: Tensor | None, pairs: Pairs, prefix: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Average pairs by their sizes; see `ToMe.merge`."""
        counts = sizes.unsqueeze(-1)
        weighted = torch.cat([x.float() * counts, counts], dim=-1)
        head, rest = weighted[:, :prefix], weighted[:, prefix:]
        gone = rest.gather(1, _rows(pairs.gone, rest))
        rest = rest.scatter_add(1, _rows(pairs.into, rest), gone)
        out = torch.cat([head, rest.gather(1, _rows(pairs.stay, rest))], dim=1)
        return (out[..., :-1] / out[..., -1:]).to(x.dtype), out[..., -1].detach(), None


@dataclass(frozen=True)
class PiToMe(_MergesAnywhere):
    """PiToMe (NeurIPS 2024): the tokens of most energy are merged, halves of them with each other.

    A token's energy is the mean of its similarities to all others, those below a margin counted as
    exp(similarity - margin) - 1; the margin falls with depth from 0.9 to 0.
    """

    name = "pitome"
    margin: float = 0.9

    def run_block(
        self, i: int, x: Tensor, stages: Mapping[int, PlannedStage], context: StageContext
    ) -> Tensor:
        """Run a block with its margin; see `ToMe.run_block`."""
        how = replace(self, margin=0.9 - 0.9 * i / len(context.blocks))
        return ToMe.run_block(how, i, x, stages, context)

    def match(self, keys: Tensor, x: Tensor, sizes: Tensor, remove: int, prefix: int) -> Pairs:
        """Pair the tokens of most energy; see `ToMe.match`."""
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            metric = F.normalize(keys.detach().float().mean(dim=1)[:, prefix:], dim=-1)
            similar = metric @ metric.transpose(1, 2)
            energy = torch.where(
                similar > self.margin, similar, (similar - self.margin).exp() - 1
            ).mean(2)
            order = energy.argsort(dim=1, descending=True)
            gone, other = order[:, : 2 * remove : 2], order[:, 1 : 2 * remove : 2]
            between = similar.gather(1, _rows(gone, similar))
            between = between.gather(2, other[:, None].expand(-1, gone.shape[1], -1))
            into = other.gather(1, between.argmax(dim=2))
            stay = torch.cat([order[:, 2 * remove :], other], dim=1).sort(dim=1).values
            return Anywhere(gone, stay, into, 0)


@dataclass(frozen=True)
class Atc(_MergesAnywhere):
    """ATC (ECCV 2024): in each block, agglomerative clustering of the keys by average linkage."""

    name = "atc"

    def match(self, keys: Tensor, x: Tensor, sizes: Tensor, remove: int, prefix: int) -> Pairs:
        """Join the nearest clusters, again and again; see `ToMe.match`."""
        metric = F.normalize(keys.detach().float().mean(dim=1)[:, prefix:], dim=-1)
        with torch.autocast(x.device.type, enabled=False):
            distances = 1 - (metric @ metric.transpose(1, 2)).cpu().numpy()
        count = metric.shape[1]
        upper = np.triu_indices(count, 1)
        gone, into = [], []
        for each in distances:
            first = list(range(count))  # the first token of each cluster, as scipy numbers them
            goes: dict[int, int] = {}
            for a, b, *_ in linkage(each[upper], "average")[:remove]:
                low, high = sorted((first[int(a)], first[int(b)]))
                first.append(low)
                goes = {token: low if end == high else end for token, end in goes.items()}
                goes[high] = low
            gone.append(sorted(goes))
            into.append([goes[token] for token in sorted(goes)])
        leave = torch.tensor(gone, device=x.device)
        left = torch.ones(len(gone), count, dtype=torch.bool, device=x.device)
        left = left.scatter(1, leave, False)
        stay = left.nonzero()[:, 1].reshape(len(gone), count - remove)
        return Anywhere(leave, stay, torch.tensor(into, device=x.device), 0)


@dataclass(frozen=True)
class _Dropping(ToMe):
    """ToMe's pairs, of which one token is dropped."""

    name = "dropping"

    def merge(
        self, x: Tensor, sizes: Tensor, resultants: Tensor | None, pairs: Pairs, prefix: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Leave the pairs' tokens of the second set as they are; see `ToMe.merge`."""
        left = x[:, prefix:].gather(1, _rows(pairs.left(), x))
        x = torch.cat([x[:, :prefix], left], dim=1)
        return x, torch.ones_like(x[..., 0].float()), None


@dataclass(frozen=True)
class _Norms(ToMe):
    """ToMe's pairs, averaged at the larger norm of the two."""

    name = "norms"

    def merge(
        self, x: Tensor, sizes: Tensor, resultants: Tensor | None, pairs: Pairs, prefix: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Average, and keep the norm; see `ToMe.merge`."""
        averaged, sizes = merge_pairs(x, sizes, pairs, prefix)
        norms = x[:, prefix:].float().norm(dim=-1, keepdim=True)
        second = norms[:, 1::2].scatter_reduce(
            1, pairs.into.unsqueeze(-1), norms[:, ::2].gather(1, pairs.gone.unsqueeze(-1)), "amax"
        )
        stayed = norms[:, ::2].gather(1, pairs.stay.unsqueeze(-1))
        rest = F.normalize(averaged[:, prefix:].float(), dim=-1) * torch.cat(
            [stayed, second], dim=1
        )
        return torch.cat([averaged[:, :prefix], rest.to(x.dtype)], dim=1), sizes, None


@dataclass(frozen=True)
class ToFu(ToMe):
    """Token Fusion (WACV 2024): ToMe's pairs; the first half of the blocks drops, the rest merges.

    What is merged keeps the larger norm of the two.
    """

    name = "tofu"

    def run_block(
        self, i: int, x: Tensor, stages: Mapping[int, PlannedStage], context: StageContext
    ) -> Tensor:
        """Run a block as its half does; see `ToMe.run_block`."""
        how = _Norms() if 2 * i >= len(context.blocks) else _Dropping()
        return how.run_block(i, x, stages, context)


def register() -> None:
    """Make them known by name, in this process."""
    for each in (ToMeFalling, PiToMe, Atc, ToFu):
        register_reducer(each)


def _rows(index: Tensor, like: Tensor) -> Tensor:
    return index.unsqueeze(-1).expand(-1, -1, like.shape[-1])
