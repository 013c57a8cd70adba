"""Compare unpruned and pruned embeddings of pictures: what `elip check` runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from elip_plugin.check.bound import (
    FEWEST,
    Bound,
    Candidate,
    Trial,
    candidates,
    cheapest,
    search,
)  # fmt: skip
from elip_plugin.check.embed import Embedder, Progress
from elip_plugin.check.neighbors import Values, cosine_at, cosines, overlaps, ranks
from elip_plugin.check.statistics import Estimate, estimate
from elip_plugin.check.store import Rows
from elip_plugin.config import ElipConfig
from elip_plugin.errors import DataError
from elip_plugin.files import write_text
from elip_plugin.hosts.base import HostModel
from elip_plugin.label import label_of
from elip_plugin.measure.preview import image_only, plan_for
from elip_plugin.patching.install import find_pruner
from elip_plugin.pictures import Item

NOT_TOLD_APART, SOME = 0.9999, 0.05
"""The cosine above which a k-th neighbor is said to be a copy, and the share that is mentioned."""

WORST = 24
"""Pictures that are shown."""

TEXT_MEASURES = ("text of a picture: first", "text of a picture: 1/rank",
                 "picture of a text: first", "picture of a text: 1/rank")  # fmt: skip


FEWEST_IN_FOLDER = 10
"""Pictures of a folder that has numbers of its own."""


@dataclass(frozen=True)
class Measure:
    """A quantity over pictures, with its interval; where it is a difference, what of."""

    name: str
    value: Estimate
    unpruned: float | None = None
    pruned: float | None = None


@dataclass(frozen=True)
class FolderMeasure:
    """What was measured of a folder's pictures; `lower` if below the interval of all pictures."""

    folder: str
    pictures: int
    cosine: Estimate
    overlap: Estimate
    lower: bool


@dataclass(frozen=True)
class Result:
    """The comparison of N pictures, with features [N, E]."""

    label: str  # model, plan, evaluation and weights
    items: list[Item]  # the pictures that could be read
    broken: dict[str, str]  # what is wrong with the others, by their names
    full: Rows  # unpruned features
    pruned: Rows  # those of the plan that is reported
    values: dict[str, Values]  # what was measured of each picture, by name [N]
    k: int  # the neighbors that `overlap` is about
    candidate: Candidate  # the plan that is reported
    measures: list[Measure]
    folders: list[FolderMeasure]
    bound: Bound | None  # None if none was asked for
    trials: list[Trial]
    notes: list[str]

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
        best = cheapest(self.trials)
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


def check(
    host_model: HostModel,
    items: Sequence[Item],
    config: ElipConfig,
    folder: Path,
    *,
    k: int = 10,
    bound: Bound | None = None,
    batch: int = 32,
    progress: Progress = lambda what, done, total: None,
) -> Result:
    """Compare unpruned and pruned embeddings by the same weights.

    With a bound, the keep ratios of `config` are varied. `folder` keeps embeddings, from which the
    same call continues.
    """
    config = image_only(config)
    most = max(k, bound.k if bound else 0)
    embedder = Embedder(host_model, folder, batch, progress)
    plans = candidates(find_pruner(host_model.model), config) if bound else []
    full, faults = embedder.pictures(items, None)
    broken = {items[i].name: why for i, why in faults.items()}
    good = [item for i, item in enumerate(items) if i not in faults]
    if not good:
        name, why = next(iter(broken.items()))
        raise DataError(f"none of {len(items)} pictures can be read; {name}: {why}")
    check_count(len(good), most, bound)

    def measure(candidate: Candidate) -> tuple[Rows, dict[str, Values]]:
        pruned, faults = embedder.pictures(good, candidate.config)
        if faults:
            name = good[next(iter(faults))].name
            raise DataError(f"{name} can no longer be read: were pictures changed? start again")
        ks = sorted({k, bound.k} - {0} if bound else {k})
        return pruned, {"cosine": cosines(full, pruned), **overlaps(full, pruned, ks)}

    trials: list[Trial] = []
    if bound:
        trials = search(plans, lambda candidate: measure(candidate)[1][bound.metric], bound)
        candidate = (cheapest(trials) or trials[0]).candidate
    else:
        pruner = find_pruner(host_model.model)
        candidate = Candidate(config, plan_for(pruner, config).forward_cost(pruner.shape.width))
    pruned, values = measure(candidate)
    notes, same = [], float((cosine_at(full, k) > NOT_TOLD_APART).mean())
    if same > SOME:
        notes.append(
            f"{same:.0%} of the pictures have {k} neighbors at a cosine above {NOT_TOLD_APART}, "
            "unpruned: copies, or pictures that these weights do not tell apart; which of them are "
            "the nearest says little"
        )
    estimates = estimate(np.stack(list(values.values()), axis=1))
    measures = [Measure(name, value) for name, value in zip(values, estimates)]
    texted = [i for i, item in enumerate(good) if item.caption]
    if texted and host_model.has_text_tower:
        measures += _text_measures(embedder, good, texted, full, pruned)
    folders = _by_folder(good, values, k)
    label = label_of(host_model)
    return Result(
        label, good, broken, full, pruned, values, k, candidate, measures, folders, bound, trials,
        notes,
    )  # fmt: skip


def _text_measures(
    embedder: Embedder, items: Sequence[Item], texted: Sequence[int], full: Rows, pruned: Rows
) -> list[Measure]:
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
        Measure(name, change, float(before), float(after))
        for name, change, before, after in zip(TEXT_MEASURES, changes, *means)
    ]


def _by_folder(items: Sequence[Item], values: dict[str, Values], k: int) -> list[FolderMeasure]:
    """Measure the pictures of each folder or shard, where there are several."""
    both = np.stack([values["cosine"], values[f"overlap@{k}"]], axis=1)
    whole, groups = estimate(both), np.array([item.group for item in items])
    measures = []
    for name in np.unique(groups):
        inside = groups == name
        if FEWEST_IN_FOLDER <= inside.sum() < len(items):
            cosine, overlap = estimate(both[inside])
            lower = cosine.high < whole[0].low or overlap.high < whole[1].low
            folder, count = str(name) or ".", int(inside.sum())
            measures.append(FolderMeasure(folder, count, cosine, overlap, lower))
    return measures


def write_result(result: Result, host_model: HostModel, out: Path) -> None:
    """Write `report.json`, `pictures.tsv` with each picture, and `plan.json` for `apply`."""
    report: dict[str, Any] = {
        "label": result.label,
        "model": host_model.name,
        "weights": host_model.weights,
        "plan": result.candidate.config.to_mapping(),
        "forward_cost": result.candidate.cost,
        "pictures": len(result.items),
        "broken": result.broken,
        "measures": [asdict(m) | {"value": m.value._asdict()} for m in result.measures],
        "folders": [
            {"folder": f.folder, "pictures": f.pictures, "cosine": f.cosine._asdict(),
             f"overlap@{result.k}": f.overlap._asdict(), "lower": f.lower}
            for f in result.folders
        ],
        "worst": [result.items[i].name for i in result.worst],
        "notes": result.notes,
    }  # fmt: skip
    if result.bound:
        best = cheapest(result.trials)
        report["bound"] = {
            **result.bound._asdict(),
            "found": None if best is None else best.candidate.config.to_mapping(),
            "confirmed": result.holds,
            "trials": [
                {**trial._asdict(), "candidate": {
                    "keep": [stage.keep for stage in trial.candidate.config.stages],
                    "forward_cost": trial.candidate.cost,
                }}
                for trial in result.trials
            ],
        }  # fmt: skip
    write_text(out / "report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    lines = ["\t".join(("picture", *result.values))]
    for item, *values in zip(result.items, *result.values.values()):
        lines.append("\t".join([item.name, *(f"{value:.6g}" for value in values)]))
    write_text(out / "pictures.tsv", "\n".join(lines) + "\n")
    plan = json.dumps({"elip": result.candidate.config.to_mapping()}, indent=1)
    write_text(out / "plan.json", plan + "\n")
