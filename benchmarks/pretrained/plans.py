"""What is compared at equal shares of the operations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from elip_plugin import ElipConfig, ElipError, plan
from elip_plugin.reducers import block_macs

SHARES = (0.8, 0.7, 0.6, 0.5, 0.35)
WIDTH, DEPTH, PATCH = 384, 12, 14
REDUCERS = ("ward", "tome", "tome-falling", "pitome", "atc", "tofu", "unique", "evit", "random")
SMALLER = "smaller picture"
NAMES = (*REDUCERS, SMALLER)
MEANINGS = {
    "ward": "ours; the preset `embed`",
    "tome": "ToMe as published, its constant rate (ICLR 2023)",
    "tome-falling": "ToMe with its falling schedule",
    "pitome": "PiToMe (NeurIPS 2024), our reading",
    "atc": "Agglomerative Token Clustering (ECCV 2024), our reading",
    "tofu": "Token Fusion (WACV 2024), our reading",
    "unique": "the most unusual tokens stay, in blocks 3, 6 and 9",
    "evit": "the class token's attention, in blocks 3, 6 and 9 (ICLR 2022)",
    "random": "a random part of the patches from the input on",
    SMALLER: "unpruned, at a smaller side",
}
IN_THREE = ("unique", "evit")


@dataclass(frozen=True)
class Row:
    """A plan at a share.

    Attributes:
        name: Of `NAMES`, or "unpruned".
        share: Share of the operations that was asked for.
        cost: Counted multiply-adds of the blocks over unpruned at the same side of full pictures.
        side: Pixels of the pictures.
        config: What to prune; None for nothing.
    """

    name: str
    share: float
    cost: float
    side: int
    config: Mapping[str, Any] | None

    @property
    def key(self) -> str:
        """Name of its file of features."""
        return f"{self.name.replace(' ', '-')}-{self.share:.2f}-{self.side}"


def unpruned(side: int) -> Row:
    """Return the row of no pruning."""
    return Row("unpruned", 1.0, 1.0, side, None)


def row_of(name: str, share: float, side: int) -> Row | None:
    """Find the plan of a name that costs a share of unpruned; None if there is none near it."""
    patches = (side // PATCH) ** 2
    if name == SMALLER:
        costs = {s: _unpruned((s // PATCH) ** 2) for s in range(PATCH * 4, side, PATCH)}
        full = _unpruned(patches)
        chosen = min(costs, key=lambda s: abs(costs[s] / full - share))
        return Row(name, share, costs[chosen] / full, chosen, None)
    low, high = 0.05, 1.0
    for _ in range(25):
        keep = (low + high) / 2
        cost = _cost_of(_config(name, keep), patches)
        low, high = (keep, high) if cost is None or cost < share else (low, keep)
    config = _config(name, high)
    cost = _cost_of(config, patches)
    if cost is None or abs(cost - share) > 0.03:
        return None
    return Row(name, share, cost, side, config)


def _config(name: str, keep: float) -> dict[str, Any]:
    blocks = (3, 6, 9) if name in IN_THREE else (0,)
    stages = [
        {"block": block, "lookahead": 1, "keep": round(keep**power, 6)}
        for power, block in enumerate(blocks, 1)
    ]
    depth = {"reference_depth": DEPTH}
    return {"reducer": name, "stages": stages, "eval_mode": "image", "text_weight": 0.0, **depth}


def _cost_of(config: Mapping[str, Any], patches: int) -> float | None:
    try:
        made = plan(ElipConfig.from_mapping(config), num_patches=patches, depth=DEPTH)
    except ElipError:
        return None
    return made.forward_cost(WIDTH)


def _unpruned(patches: int) -> float:
    return DEPTH * block_macs(patches + 1, WIDTH, 4.0)
