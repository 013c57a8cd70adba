"""What chooses the tokens of a question's picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from elip_plugin import ElipConfig

PLANS = {
    "0.5": {"block": 3, "lookahead": 1, "keep": 0.5},
    "0.25": {"block": 3, "lookahead": 1, "keep": 0.25},
    "0.25 at 6": {"block": 6, "lookahead": 1, "keep": 0.25},
    "0.25 at 9": {"block": 9, "lookahead": 1, "keep": 0.25},
}
"""The one stage, before a block of 12: the third where a name does not say."""

WARMUP = 0.4
"""Share of a training from random weights over which pruning sets in, the same for all."""


@dataclass(frozen=True)
class VqaVariant:
    """One way to choose.

    Attributes:
        about: What it is, for the list.
        elip: An ELIP config; None for no pruning.
        plan: Which of `PLANS`; empty for no pruning.
    """

    about: str
    elip: Mapping[str, Any] | None = None
    plan: str = ""

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


def _chosen(plan: str, how: Mapping[str, Any]) -> dict[str, Any]:
    return {"stages": [PLANS[plan]], "reference_depth": 12, **how}


def _similarity(**options: Any) -> dict[str, Any]:
    return {"reducer": {"name": "similarity", **options}, "eval_mode": "text"}


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
        "similar ones merged in every block by ToMe",
        {"reducer": "tome", "eval_mode": "image"},
    ),
    "first similarity": (
        "by similarity to the text, as the first cross-attention compares them",
        _similarity(cross_attentions=1),
    ),
    "similarity": ("by the same, of two cross-attentions", _similarity(cross_attentions=2)),
    "taught similarity": (
        "by the same, taught by the loss on the choice",
        _similarity(cross_attentions=2, choice_loss=1.0),
    ),
}  # fmt: skip

IMPOSSIBLE = {("tome", "0.25")}
"""Of four blocks ToMe leaves 0.47 of the token-layers or more."""

REFERENCE = "unpruned"
RIVAL = "random"

VARIANTS = {
    REFERENCE: VqaVariant("all tokens"),
    **{
        f"{name} {plan}": VqaVariant(
            f"{stage['keep']} of the tokens from block {stage['block']} of 12 on, {about}",
            _chosen(plan, how),
            plan,
        )
        for plan, stage in PLANS.items()
        for name, (about, how) in CHOOSERS.items()
        if (name, plan) not in IMPOSSIBLE
    },
}
"""By name, in the order of the table."""

CONTROLS = ("another question", "sign turned")
"""At test time: guided by the question of another picture, or by its own with the sign turned."""
