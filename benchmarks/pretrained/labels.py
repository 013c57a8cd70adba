"""Nearest neighbors on labeled pictures: whether a plan keeps the classes that are near.

Tiny ImageNet: ten training pictures of each of 200 classes are the index, and five validation
pictures of each class the queries. They have 64 px and are enlarged, as by anyone who embeds them.
No plan was chosen on these pictures, and no tower adapted to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.photos.folder import read_classes, read_train, read_validation
from benchmarks.pretrained import scores
from benchmarks.pretrained.features import Features, features, load_tower
from benchmarks.pretrained.plans import SMALLER, Row, row_of, unpruned
from benchmarks.tables import markdown

LOG = Path(__file__).parents[2] / "docs" / "results" / "labels.jsonl"
ROWS = tuple((name, share) for share in (0.7, 0.5) for name in ("ward", "tome", "random", SMALLER))
ADAPTED = ("ward", 0.5)
"""The plan that the board adapts the tower to, one of the rows."""

IN_INDEX, QUERIES = 10, 5
TEMPERATURE = 0.07
SIDE = 224


class Labeled:
    """Labeled pictures and a tower's features of them, kept in files.

    Args:
        vision: Folder of the tower.
        folder: Tiny ImageNet.
        cache: Folder of pixels and features.
    """

    def __init__(self, vision: Path, folder: Path, cache: Path) -> None:
        self.tower, self.cache = load_tower(vision), cache
        classes = range(len(read_classes(folder)))
        index = read_train(folder, cache, classes, 0, IN_INDEX)
        validation = read_validation(folder, cache)
        chosen = torch.cat([(validation.own == c).nonzero()[:QUERIES, 0] for c in classes])
        self.classes = torch.cat([index.own, validation.own[chosen]])
        pictures = torch.cat([index.pictures, validation.pictures[chosen]])
        self.pixels = pictures.permute(0, 2, 3, 1).numpy()
        self.size = len(index.own)

    def features(self, row: Row, of: str = "given") -> Features:
        """Return the features of all pictures by a plan.

        Args:
            row: The plan.
            of: Of whose weights these are, a name of a folder.
        """
        every = np.arange(len(self.pixels))
        return features(self.tower, self.pixels, every, row, self.cache / "labels" / of)

    def score(self, row: Row, found: Features, full: Features) -> dict[str, Any]:
        """Score a plan's features beside unpruned ones.

        Args:
            row: The plan.
            found: Its features.
            full: Features of the weights as they were given, unpruned.

        Returns:
            A line of the log.
        """
        line: dict[str, Any] = {"name": row.name, "share": row.share, "cost": row.cost}
        line |= {"picture": row.side, "index": self.size, "queries": len(self.classes) - self.size}
        for kind in ("cls", "mean"):
            (index, queries), (full_index, full_queries) = (
                (f[kind][: self.size], f[kind][self.size :]) for f in (found, full)
            )
            full_right, near = self._right(full_index, full_queries)
            line[kind] = {"unpruned": float(full_right.mean())}
            for name, by in (("pruned index", index), ("unpruned index", full_index)):
                right, own = self._right(by, queries)
                stay = (own[:, :, None] == near[:, None]).any(2).float().mean()
                line[kind][name] = {
                    "loss": scores.interval(right[None], full_right[None]),
                    "overlap": float(stay),
                }
        return line

    def _right(self, index: Tensor, queries: Tensor) -> tuple[np.ndarray, Tensor]:
        """Return which queries get their class, and their neighbors."""
        voted, near = vote(index, queries, self.classes[: self.size])
        return (voted == self.classes[self.size :]).float().numpy(), near


def vote(index: Tensor, queries: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Let ten neighbors vote for their classes, by exp(cosine / 0.07).

    Args:
        index: Features [N, D].
        queries: Features [Q, D].
        classes: Of the index [N].

    Returns:
        Classes [Q], and the places of the neighbors [Q, 10].
    """
    near = (F.normalize(queries, dim=1) @ F.normalize(index, dim=1).T).topk(scores.NEIGHBORS)
    votes = torch.zeros(len(queries), int(classes.max()) + 1)
    votes.scatter_add_(1, classes[near.indices], (near.values / TEMPERATURE).exp())
    return votes.argmax(1), near.indices


def run(vision: Path, folder: Path, cache: Path, adapted: Path | None) -> list[dict[str, Any]]:
    """Score all rows.

    Args:
        vision: Folder of the tower.
        folder: Tiny ImageNet.
        cache: Folder of what was computed.
        adapted: Folder of the adapted tower, scored too.

    Returns:
        Lines of the log.
    """
    pictures = Labeled(vision, folder, cache)
    full = pictures.features(unpruned(SIDE))
    rows = {key: row for key in ROWS if (row := row_of(*key, SIDE)) is not None}
    lines = [pictures.score(row, pictures.features(row), full) for row in rows.values()]
    if adapted is not None:
        pictures.tower, row = load_tower(adapted), rows[ADAPTED]
        found = pictures.features(row, adapted.name)
        lines.append({**pictures.score(row, found, full), "name": f"{row.name}, adapted"})
    return lines


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Make the page's table from the log; its first row has accuracies themselves."""
    kinds, indices = ("cls", "mean"), ("pruned index", "unpruned index")
    header = (
        "operations", "plan", "class token", "class token, unpruned index", "mean",
        "mean, unpruned index", "neighbors that stay",
    )  # fmt: skip
    accuracies = [f"{100 * rows[0][kind]['unpruned']:.1f}%" for kind in kinds for _ in indices]
    cells = [["1.00", "unpruned", *accuracies, ""]]
    for row in rows:
        stay = [f"{row[kind][indices[0]]['overlap']:.2f}" for kind in kinds]
        losses = [scores.points(row[kind][index]["loss"]) for kind in kinds for index in indices]
        cells.append([f"{row['cost']:.2f}", f"`{row['name']}`", *losses, ", ".join(stay)])
    return markdown(header, cells)
