"""What chooses the tokens of a question's picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from elip_plugin import ElipConfig

BLOCK = 3
"""The one stage's block, of 12."""

KEEPS = (0.5, 0.25)
WARMUP = 0.4
"""Share of a training from random weights over which pruning sets in, the same for all."""


@dataclass(frozen=True)
class VqaVariant:
    """One way to choose.

    Attributes:
        about: What it is, for the table.
        elip: An ELIP config; None for no pruning.
    """

    about: str
    elip: Mapping[str, Any] | None = None

    def config(self, regime: str) -> ElipConfig | None:
        """Return the pruning configuration of a regime; None for no pruning."""
        if self.elip is None:
            return None
        warmup = WARMUP if regime == "scratch" else 0.0
        return ElipConfig.from_mapping({**self.elip, "warmup": warmup})

    @property
    def definition(self) -> dict[str, Any]:
        """What the variant is, in plain values, as the results log stores it."""
        return {"elip": None if self.elip is None else dict(self.elip)}


def _chosen(keep: float, **how: Any) -> dict[str, Any]:
    stage = {"block": BLOCK, "lookahead": 1, "keep": keep}
    return {"stages": [stage], "reference_depth": 12, **how}


CHOOSERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "random": ("at random", {"reducer": "random", "eval_mode": "image"}),
    "image": ("by the class token's attention", {"text_weight": 0.0, "eval_mode": "image"}),
    "text 0.2": ("by the paper's blend, text weight 0.2", {"eval_mode": "text"}),
    "text 0.5": (
        "by the paper's blend, text weight 0.5",
        {"text_weight": 0.5, "eval_mode": "text"},
    ),
    "text 1": ("by attention of the text alone", {"text_weight": 1.0, "eval_mode": "text"}),
    "tome": (
        "alike ones merged in every block by ToMe",
        {"reducer": "tome", "eval_mode": "image"},
    ),
    "similarity": (
        "by similarity to the text, as the cross-attention compares them",
        {"reducer": "similarity", "eval_mode": "text"},
    ),
    "taught similarity": (
        "by the same, taught by the loss on the choice",
        {"reducer": "similarity", "eval_mode": "text", "choice_loss": 1.0},
    ),
}  # fmt: skip

REFERENCE = "unpruned"

VARIANTS = {
    REFERENCE: VqaVariant("all tokens"),
    **{
        f"{name} {keep}": VqaVariant(f"{keep} of the tokens, {about}", _chosen(keep, **how))
        for keep in KEEPS
        for name, (about, how) in CHOOSERS.items()
    },
}
"""By name, in the order of the table."""

CONTROLS = ("another question", "sign turned")
"""At test time: guided by the question of another picture, or by its own with the sign turned."""
