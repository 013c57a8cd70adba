"""What research/finetuning.md says by the logs."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import mean

from scripts import load

from page_numbers.logs import FINETUNING


def sentences() -> Iterator[str]:
    compared = load("examples/compare_finetuning.py")
    groups = compared.read(FINETUNING.glob("*.json"))
    yield " ".join(compared.table(groups).split())
    none, half, longer = (
        mean(r[f"{way}_R@1"] for r in groups[key] for way in ("image_to_text", "text_to_image"))
        for key in (("none", 156), ("half", 156), ("half", 260))
    )
    yield (
        f"By their means `half` has an R@1, both ways, of {half:.1f}% at equal steps and "
        f"{longer:.1f}% at equal operations, unpruned training {none:.1f}%."
    )


NO_LOG = ("transformers 5.24",)
