"""Which patches are in which token, stage by stage; and back to the full grid.

Shapes: B batch, N patches that entered block 0, P prefix tokens, T non-prefix tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from elip_plugin.core.merge import take_rows
from elip_plugin.core.precision import exact
from elip_plugin.core.select import Selection
from elip_plugin.errors import TraceError

MERGED = -1
"""In `StageTrace.kept`: a token that an earlier stage merged, which stands for no one patch."""


@dataclass(frozen=True)
class StageTrace:
    """What one stage did.

    Attributes:
        block: The block before which it pruned.
        kept: Original patch index of each token it kept [B, K], or `MERGED`.
        merge_weights: Weight of each original patch in the token that it made of the others
            [B, N], 0 for patches that are not in it; None where it dropped them, or made several.
        sources: Weight of each original patch in each non-prefix token after it [B, T, N].
        until: The block before which the dropped tokens come back; None if they do not.
        groups: The non-prefix token that each original patch is in after it [B, N], of a stage that
            averages groups; None of one that chooses.
    """

    block: int
    kept: Tensor
    merge_weights: Tensor | None
    sources: Tensor
    until: int | None = None
    groups: Tensor | None = None


@dataclass
class Trace:
    """The stages of the last forward inside `Handle.trace`.

    Attributes:
        prefix: Prefix tokens P.
        stages: What each did, in order; empty where nothing was pruned.
        sources: Weight of each original patch in each non-prefix token at the end [B, T, N], all
            that came back included; None where nothing was pruned.
        restored: Whether the forward gave each patch the token that it is in after the last block.
    """

    prefix: int
    stages: list[StageTrace] = field(default_factory=list)
    sources: Tensor | None = None
    restored: bool = False

    @property
    def sizes(self) -> Tensor | None:
        """How many patches each non-prefix token at the end stands for [B, T]."""
        return None if self.sources is None else self.sources.count_nonzero(dim=2)

    def begin(self) -> None:
        """Forget what an earlier forward did."""
        self.stages, self.sources, self.restored = [], None, False

    def record(
        self, block: int, selection: Selection, present: int, until: int | None = None
    ) -> None:
        """Add a stage of T non-prefix tokens; what it drops comes back before block `until`."""
        before = self._before(selection.kept, present)
        kept = take_rows(before, selection.kept)
        merged = None
        sources = kept
        if selection.weights is not None:
            weights = selection.weights.to(before.dtype).unsqueeze(1)
            with exact(before):
                merged = (weights @ take_rows(before, selection.dropped)).squeeze(1)
            sources = torch.cat([kept, merged.unsqueeze(1)], dim=1)
        self.stages.append(StageTrace(block, _single(kept), merged, sources, until))
        self.sources = sources if until is None else before

    def record_groups(self, block: int, groups: Tensor, tokens: int) -> None:
        """Add a stage that averages groups of tokens, each by the patches that it stands for.

        `groups` [B, T] is the token after the stage that each non-prefix token before it is in.
        """
        before = self._before(groups, groups.shape[1])
        member = torch.nn.functional.one_hot(groups, tokens).transpose(1, 2)
        weights = (member * before.count_nonzero(dim=2).unsqueeze(1)).to(before.dtype)
        with exact(before):
            self.sources = (weights / weights.sum(dim=2, keepdim=True)) @ before
        kept, holder = _single(self.sources), self.sources.argmax(dim=1)
        self.stages.append(StageTrace(block, kept, None, self.sources, groups=holder))

    def _before(self, like: Tensor, present: int) -> Tensor:
        """Return the sources of the tokens that enter a stage [B, T, N]."""
        if self.sources is not None:
            return self.sources
        return torch.eye(present, device=like.device).expand(like.shape[0], -1, -1)

    def unmerge(self, tokens: Tensor, fill: float = 0.0) -> Tensor:
        """Put the features of a pruned tower's tokens back on the full grid.

        Args:
            tokens: Tokens of the same forward, after the last block: [B, P + T, D], or
                [B, T, D] without the prefix.
            fill: Value for patches that are in no token, because they were dropped unmerged.

        Returns:
            Features [B, N, D]: a patch has those of the token that it was kept as, or merged
            into. Gradient flows.

        Raises:
            TraceError: If no stage is recorded, or the tokens are not of its shape.
        """
        if self.sources is None:
            raise TraceError(
                "there is nothing to unmerge: no forward was pruned inside this trace; "
                "run the model in training, or with `eval_mode: image`, inside `handle.trace()`"
            )
        sources = self.sources
        batch, count, patches = sources.shape
        if self.restored and tokens.ndim == 3 and tokens.shape[1] - patches in (0, self.prefix):
            return tokens[:, -patches:]
        if tokens.ndim != 3 or tokens.shape[:2] not in (
            (batch, count),
            (batch, count + self.prefix),
        ):
            raise TraceError(
                f"tokens have shape {tuple(tokens.shape)}, but this trace ends with "
                f"{self.prefix} + {count} tokens of {batch} images: pass what the last block gave"
            )
        tokens = tokens[:, tokens.shape[1] - count :]
        holder = sources.argmax(dim=1)  # the token that has the patch
        features = take_rows(tokens, holder)
        absent = (sources.sum(dim=1) == 0).unsqueeze(-1)
        return features.masked_fill(absent, fill)


def _single(sources: Tensor) -> Tensor:
    """Return the patch that each token is, or `MERGED` [B, T]."""
    return sources.argmax(dim=2).masked_fill(sources.count_nonzero(dim=2) != 1, MERGED)
