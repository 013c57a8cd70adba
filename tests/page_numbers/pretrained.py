"""What docs/pretrained.md says by its log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from benchmarks import results_log
from benchmarks.pretrained import finetuning, labels, page
from benchmarks.stats import difference
from benchmarks.tables import signed


@cache
def rows() -> list[Mapping[str, Any]]:
    return list(results_log.read(page.LOG))


def row(name: str, share: float) -> Mapping[str, Any]:
    (found,) = (r for r in rows() if (r["name"], r["share"], r["side"]) == (name, share, 224))
    return found


def lost(name: str, share: float, kind: str = "both", score: str = "t2i R@1") -> str:
    """Points that are lost."""
    return f"{-100 * row(name, share)[kind][score]['loss'][0]:.1f}"


def stay(name: str, share: float) -> str:
    """Neighbors that stay, of ten, by the class token."""
    return f"{10 * row(name, share)['overlap']['cls']:.1f}"


def tuned(name: str, steps: int) -> list[str]:
    """Points of R@1 over unpruned fine-tuning at 112 px, with all tokens at test.

    At equal steps, and at equal operations.
    """

    def scored(name: str, budget: str) -> dict[int, float]:
        log = {finetuning.key_of(r): r for r in results_log.read(finetuning.LOG)}
        found = {k[1]: r for k, r in log.items() if (k[0], *k[2:]) == (name, 112, steps)}
        return {seed: r[budget]["unpruned"]["t2i R@1"] for seed, r in found.items()}

    return [
        signed(difference(scored(name, budget), scored("unpruned", budget)))
        for budget in ("steps", "operations")
    ]


def sentences() -> Iterator[str]:
    base = row("ward", 0.5)
    yield (
        f"photograph is found first: {100 * base['cls']['t2i R@1']['unpruned']:.1f}% by the class "
        f"token and {100 * base['both']['t2i R@1']['unpruned']:.1f}% by both, unpruned."
    )
    yield (
        f"{lost('ward', 0.7, 'cls')} points of R@1 are lost by the class token and "
        f"{lost('ward', 0.7)} by both, and {stay('ward', 0.7)} of ten neighbors stay."
    )
    yield (
        f"{lost('ward', 0.5)} points of R@1 by both, and {stay('ward', 0.5)} of ten neighbors stay."
    )
    yield (
        f"ToMe as published loses {lost('tome', 0.5)}, a random part of the patches "
        f"{lost('random', 0.5)}, the class token's attention {lost('evit', 0.5)}."
    )
    small = row("smaller picture", 0.5)
    yield (
        f"A smaller picture, {small['picture']} px at {small['cost']:.2f} of the operations, loses "
        f"{lost('smaller picture', 0.5)}, and {stay('smaller picture', 0.5)} neighbors stay."
    )
    yield (
        f"at a third of the operations `ward` loses {lost('ward', 0.35)} points, `tome` "
        f"{lost('tome', 0.35)} and a smaller picture {lost('smaller picture', 0.35)}."
    )
    adapted = next(r for r in rows() if r["name"] == "ward, adapted")
    loss = [f"{-100 * x:.1f}" for x in adapted["both"]["t2i R@1"]["loss"]]
    yield (
        f"R@1 by both is {loss[0]} points below unpruned at {adapted['cost']:.2f} of the "
        f"operations (from {loss[1]} below to {-float(loss[2]):.1f} above)."
    )
    inside = [f"{10 * r['overlap in index']['cls']:.1f}" for r in (adapted, base)]
    yield (
        f"By the class token {10 * adapted['overlap']['cls']:.1f} of ten neighbors stay "
        f"({stay('ward', 0.5)} before), {inside[0]} in an index of unpruned features ({inside[1]} "
        f"before), and {100 * adapted['mixed']['cls']:.1f}% of the photographs find themselves in "
        "an index of unpruned features."
    )
    before, after = (
        next(r for r in results_log.read(labels.LOG) if (r["name"], r["share"]) == (name, 0.5))
        for name in ("ward", "ward, adapted")
    )
    kept = [f"{10 * r['cls']['pruned index']['overlap']:.1f}" for r in (after, before)]
    yield f"keep more neighbors, too: {kept[0]} of ten, {kept[1]} before."
    right = 100 * before["cls"]["unpruned"]
    yield f"ten neighbors name {right:.1f}% of Tiny ImageNet's pictures rightly"
    ward, long, half = tuned("ward 0.7", 100), tuned("ward 0.7", 300), tuned("half", 100)
    yield (
        f"After as many steps as unpruned fine-tuning `ward` was at {ward[0]} points, and after as "
        f"many operations at {ward[1]}."
    )
    yield (
        f"In trainings three times as long it was at {long[0]} and {long[1]} (three seeds): what "
        "pruning gains in a short fine-tuning is gone in a longer one."
    )
    yield f"`half`, which is for training from scratch, was at {half[0]} and {half[1]}."


NO_LOG = (
    "at about 0.7 of the operations",
    "takes 0.80 (0.73-0.81) of unpruned",
    "0.62 (0.59-0.63)",
    "1.02 (0.95-1.15) and 0.79 (0.77-0.86), so that nothing is saved at 0.7",
)
