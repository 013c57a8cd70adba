"""Compare unpruned and pruned embeddings of pictures: what `elip check` runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from elip_plugin.check.bound import FEWEST, Bound, Rung, Tried, chosen, ladder, search
from elip_plugin.check.embed import Embedder, Progress
from elip_plugin.check.neighbors import Values, cosine_at, cosines, overlaps, ranks
from elip_plugin.check.slices import Slice, look_at_all, slices
from elip_plugin.check.statistics import Estimate, estimate
from elip_plugin.check.store import Rows
from elip_plugin.config import ElipConfig
from elip_plugin.errors import DataError
from elip_plugin.files import write_text
from elip_plugin.hosts.base import HostModel
from elip_plugin.label import label_of
from elip_plugin.measure.preview import by_the_image, plan_for
from elip_plugin.patching.install import find_pruner
from elip_plugin.pictures import Item

NOT_TOLD_APART, SOME = 0.9999, 0.05
"""The cosine above which a k-th neighbor is said to be a copy, and the share that is mentioned."""

WORST = 24
"""Pictures that are shown."""

TEXT_MEASURES = ("text of a picture: first", "text of a picture: 1/rank",
                 "picture of a text: first", "picture of a text: 1/rank")  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """A quantity over pictures, with its interval; where it is a difference, what of."""

    name: str
    value: Estimate
    unpruned: float | None = None
    pruned: float | None = None


@dataclass(frozen=True)
class OnSlice:
    """What became of a slice; `lower` if its intervals lie below those of all pictures."""

    slice: Slice
    cosine: Estimate
    overlap: Estimate
    lower: bool


@dataclass(frozen=True)
class Result:
    """What a check found.

    Attributes:
        label: Model, plan, evaluation and weights.
        items: The pictures that could be read.
        broken: What is wrong with the others, by their names.
        looks: Width, height and how busy each picture is [N, 3].
        full: Unpruned features [N, E].
        pruned: Those of the plan that is reported [N, E].
        values: What was measured of each picture, by name [N].
        k: Neighbors that `overlap` is about.
        rung: The plan that is reported.
        measures: Means and intervals.
        slices: The same by slices.
        bound: What was asked for; None if nothing was.
        tried: The plans that were tried for it.
        notes: What the reader should know besides.
    """

    label: str
    items: list[Item]
    broken: dict[str, str]
    looks: Rows
    full: Rows
    pruned: Rows
    values: dict[str, Values]
    k: int
    rung: Rung
    measures: list[Measured]
    slices: list[OnSlice]
    bound: Bound | None
    tried: list[Tried]
    notes: list[str] = field(default_factory=list)

    @property
    def overlap(self) -> Values:
        """The share of neighbors that stays where all is pruned [N]."""
        return self.values[f"overlap@{self.k}"]

    @property
    def worst(self) -> list[int]:
        """Places of the pictures that lost most neighbors, then most cosine."""
        order = np.lexsort((self.values["cosine"], self.overlap))
        return [int(i) for i in order[:WORST]]

    @property
    def holds(self) -> bool:
        """Whether a plan keeps the bound, and the second half confirms it; true without one."""
        best = chosen(self.tried)
        return self.bound is None or (best is not None and best.confirmed)


def check_count(count: int, k: int, bound: Bound | None) -> None:
    """Refuse too few pictures."""
    if count < k + 1:
        raise DataError(
            f"{count} pictures have no {k} neighbors each: give {k + 1} pictures or more, or ask "
            "for fewer neighbors"
        )
    if bound is not None and count < FEWEST:
        raise DataError(
            f"{count} pictures cannot show a bound at 95% confidence: give {FEWEST} or more, or "
            "leave --bound out"
        )


def look(
    items: Sequence[Item], folder: Path, progress: Progress
) -> tuple[list[Item], Rows, dict[str, str]]:
    """Look at pictures: those that can be read, what they look like, and the faults by name."""
    looks, faults = look_at_all(items, folder, progress)
    good = [item for i, item in enumerate(items) if i not in faults]
    return good, looks, {items[i].name: why for i, why in faults.items()}


def check(
    host_model: HostModel,
    items: Sequence[Item],
    config: ElipConfig,
    folder: Path,
    *,
    k: int = 10,
    bound: Bound | None = None,
    batch: int = 32,
    texts_asked: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> Result:
    """Compare unpruned and pruned embeddings by the same weights.

    Args:
        host_model: The model.
        items: The pictures.
        config: The plan; with a bound, the one whose keep ratios are varied.
        folder: Where embeddings are kept; the same call goes on where it was stopped.
        k: Neighbors to look at.
        bound: What must hold.
        batch: Pictures per forward.
        texts_asked: Whether the user gave texts: then a model without text features is an error.
        progress: Told how far it is.

    Returns:
        What was found.

    Raises:
        DataError: If too few pictures can be read.
        ConfigError: If the plan needs a text, or none is cheaper than no pruning.
    """
    config = by_the_image(config)
    good, looks, broken = look(items, folder, progress)
    check_count(len(good), max(k, bound.k if bound else 0), bound)
    embedder, notes = Embedder(host_model, folder, batch, progress), []
    rungs = ladder(find_pruner(host_model.model), config) if bound else []
    texted = [i for i, item in enumerate(good) if item.caption]
    if texted:
        try:
            embedder.check_texts()
        except Exception as error:
            if texts_asked:
                raise
            texted, notes = [], [f"the texts beside the pictures are not used: {error}"]
    full, faults = embedder.pictures(good, None)
    if faults:  # such as pictures of one pixel, which cannot be resized
        broken |= {good[i].name: why for i, why in faults.items()}
        stay = [i for i in range(len(good)) if i not in faults]
        good, looks = [good[i] for i in stay], looks[stay]
        texted = [i for i, item in enumerate(good) if item.caption] if texted else []
        check_count(len(good), max(k, bound.k if bound else 0), bound)

    def measure(rung: Rung) -> tuple[Rows, dict[str, Values]]:
        pruned, faults = embedder.pictures(good, rung.config)
        if faults:
            name = good[next(iter(faults))].name
            raise DataError(f"{name} can no longer be read: were pictures changed? start again")
        ks = sorted({k, bound.k} - {0} if bound else {k})
        return pruned, {"cosine": cosines(full, pruned), **overlaps(full, pruned, ks)}

    tried: list[Tried] = []
    if bound:
        tried = search(rungs, lambda rung: measure(rung)[1][bound.metric], bound)
        rung = (chosen(tried) or tried[0]).rung
    else:
        pruner = find_pruner(host_model.model)
        rung = Rung(config, plan_for(pruner, config).forward_cost(pruner.shape.width))
    pruned, values = measure(rung)
    same = float((cosine_at(full, k) > NOT_TOLD_APART).mean())
    if same > SOME:
        notes.append(
            f"{same:.0%} of the pictures have {k} neighbors at a cosine above {NOT_TOLD_APART}, "
            "unpruned: copies, or pictures that these weights do not tell apart; which of them are "
            "the nearest says little"
        )
    measures = _measures(values)
    if texted:
        measures += _text_measures(embedder, good, texted, full, pruned)
    parts = _on_slices(slices(good, looks), values, k)
    return Result(
        label_of(host_model),
        good,
        broken,
        looks,
        full,
        pruned,
        values,
        k,
        rung,
        measures,
        parts,
        bound,
        tried,
        notes,
    )


def _measures(values: dict[str, Values]) -> list[Measured]:
    made = estimate(np.stack(list(values.values()), axis=1))
    return [Measured(name, value) for name, value in zip(values, made)]


def _text_measures(
    embedder: Embedder, items: Sequence[Item], texted: Sequence[int], full: Rows, pruned: Rows
) -> list[Measured]:
    """Rank texts and pictures for each other, unpruned and pruned; intervals of the difference."""
    given = [str(items[i].caption) for i in texted]
    texts = sorted(set(given))
    place = {text: number for number, text in enumerate(texts)}
    own = np.array([place[text] for text in given])
    features = embedder.texts(texts)
    sides = []
    for pictures in (full[texted], pruned[texted]):
        both = ranks(pictures, features, own)
        sides.append(np.stack([v for rank in both for v in (rank == 1, 1 / rank)], axis=1))
    changes = estimate(sides[1] - sides[0])
    means = [side.mean(axis=0) for side in sides]
    return [
        Measured(name, change, float(before), float(after))
        for name, change, before, after in zip(TEXT_MEASURES, changes, *means)
    ]


def _on_slices(parts: Sequence[Slice], values: dict[str, Values], k: int) -> list[OnSlice]:
    both = np.stack([values["cosine"], values[f"overlap@{k}"]], axis=1)
    whole = estimate(both)
    made = []
    for part in parts:
        each = estimate(both[part.places])
        lower = any(mine.high < all_.low for mine, all_ in zip(each, whole))
        made.append(OnSlice(part, each[0], each[1], lower))
    return made


def write_result(result: Result, host_model: HostModel, out: Path) -> None:
    """Write `report.json`, `pictures.tsv` with every picture, and `plan.json`, which `apply` reads.

    Args:
        result: What was found.
        host_model: The model.
        out: A folder.
    """
    report: dict[str, Any] = {
        "label": result.label,
        "model": host_model.name,
        "weights": host_model.weights,
        "plan": result.rung.config.to_mapping(),
        "forward_cost": result.rung.cost,
        "pictures": len(result.items),
        "broken": result.broken,
        "measures": [asdict(each) | {"value": each.value._asdict()} for each in result.measures],
        "slices": [
            {"kind": s.slice.kind, "name": s.slice.name, "pictures": len(s.slice.places),
             "cosine": s.cosine._asdict(), f"overlap@{result.k}": s.overlap._asdict(),
             "lower": s.lower}
            for s in result.slices
        ],
        "worst": [result.items[i].name for i in result.worst],
        "notes": result.notes,
    }  # fmt: skip
    if result.bound:
        best = chosen(result.tried)
        report["bound"] = {
            **result.bound._asdict(),
            "found": None if best is None else best.rung.config.to_mapping(),
            "confirmed": result.holds,
            "tried": [
                {**each._asdict(), "rung": {
                    "keep": [stage.keep for stage in each.rung.config.stages],
                    "forward_cost": each.rung.cost,
                }}
                for each in result.tried
            ],
        }  # fmt: skip
    write_text(out / "report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    names = ("picture", *result.values, "width", "height", "busy")
    columns = [*result.values.values(), *result.looks.T]
    lines = ["\t".join(names)]
    for i, item in enumerate(result.items):
        lines.append("\t".join([item.name, *(f"{column[i]:.6g}" for column in columns)]))
    write_text(out / "pictures.tsv", "\n".join(lines) + "\n")
    plan = json.dumps({"elip": result.rung.config.to_mapping()}, indent=1)
    write_text(out / "plan.json", plan + "\n")
