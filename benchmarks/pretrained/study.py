"""One plan's scores on captioned photographs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks.pretrained import heads, photos, scores
from benchmarks.pretrained.adapting import adapted
from benchmarks.pretrained.features import Features, features, load_tower, text_features
from benchmarks.pretrained.plans import Row, row_of, unpruned

OURS = "ward"
ADAPTED = ", adapted"


class Study:
    """Photographs, a tower and heads, read or computed when they are asked for.

    Args:
        vision: Folder of the tower.
        text: Folder of the text model.
        folder: Photographs.
        captions: Their captions.
        cache: Folder of what was computed.
        part: Photographs that are scored.
        seeds: Heads of each kind.
        side: Pixels.
        most: Photographs; 0 for all of the part.
    """

    def __init__(
        self, vision: Path, text: Path, folder: Path, captions: Path, cache: Path, part: str,
        seeds: int, side: int, most: int,
    ) -> None:  # fmt: skip
        self.vision, self.text, self.cache, self.part_name = vision, text, cache, part
        self.seeds, self.side, self.adapted = seeds, side, cache
        self.photos = photos.read(folder, captions, cache)
        self.part = self.photos.parts[part][: most or None]

    @cached_property
    def tower(self) -> Any:
        """The tower."""
        return load_tower(self.vision)

    @cached_property
    def texts(self) -> Tensor:
        """Text features [N, 5, E]."""
        return text_features(self.text, self.photos.captions, self.cache)

    @cached_property
    def heads(self) -> dict[str, list[heads.Head]]:
        """Heads by kind, trained at the side of the files, also for features of another."""
        training = self.photos.parts["training"]
        unseen = self._features(unpruned(photos.SIDE), training)
        return {
            kind: [
                heads.train(
                    heads.concatenated(unseen, kind), self.texts[training], seed,
                    self.cache / f"head-{photos.SIDE}-{kind}-{seed}.pt",
                )
                for seed in range(self.seeds)
            ]
            for kind in heads.KINDS
        }  # fmt: skip

    def _features(self, row: Row, part: np.ndarray) -> Features:
        # Features of adapted weights are theirs alone; others may be of the weights as they were.
        kept = self.adapted if row.name.endswith(ADAPTED) else self.cache
        return features(self.tower, self.photos.pixels, part, row, kept / "features")

    def _hits(self, row: Row, kind: str) -> scores.Hits:
        images = heads.concatenated(self._features(row, self.part), kind)
        texts = self.texts[self.part]
        return scores.hits([heads.ranks(head, images, texts) for head in self.heads[kind]])

    def adapt(self, row: Row, steps: int, say: Callable[[str], None]) -> Row:
        """Adapt the tower to a plan by all other photographs; from here on it is the tower.

        Args:
            row: The plan.
            steps: Steps of the optimizer.
            say: Told how far it is.

        Returns:
            The row to score: the same plan under another name.
        """
        assert row.config is not None
        for each in (unpruned(self.side), row):  # of the weights as they were
            self._features(each, self.part)
        assert self.heads
        others = np.concatenate([p for n, p in self.photos.parts.items() if n != self.part_name])
        name = f"{row.name}{ADAPTED}"
        self.adapted = self.cache / f"{row.key}-adapted-{steps}"
        self.tower = adapted(self.tower, self.photos.pixels, others, row, self.adapted, steps, say)
        return replace(row, name=name)

    def score(self, row: Row) -> dict[str, Any]:
        """Score a plan.

        Args:
            row: The plan.

        Returns:
            A line of the log.
        """
        found, base = self._features(row, self.part), self._features(unpruned(self.side), self.part)
        line: dict[str, Any] = {
            "name": row.name, "share": row.share, "cost": row.cost, "side": self.side,
            "picture": row.side, "part": self.part_name, "photos": len(self.part),
            "heads": self.seeds,
        }  # fmt: skip
        for name, score in scores.AGAINST_UNPRUNED.items():
            line[name] = {each: score(found[each], base[each]) for each in ("cls", "mean")}
        ours = row_of(OURS, row.share, self.side)
        for kind in heads.KINDS:
            own, full = self._hits(row, kind), self._hits(unpruned(self.side), kind)
            line[kind] = {
                name: {
                    "unpruned": float(full[name].mean()),
                    "loss": scores.interval(own[name], full[name]),
                }
                for name in own
            }
            if ours is not None and row.name != OURS:
                best = self._hits(ours, kind)
                line[kind]["t2i R@1"]["behind"] = scores.interval(best["t2i R@1"], own["t2i R@1"])
                line[kind]["MRR"]["behind"] = scores.interval(best["MRR"], own["MRR"])
        return line
