"""What is compared: plans, reducers, controls that show what the text does, and schedules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from elip_plugin import ElipConfig


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        about: What it is, for the table.
        elip: An ELIP config; None for no pruning.
        control: "shuffled" guides each image by another one's caption, "by caption" drops at
            random, the same tokens for the same caption; "" for neither.
        coarse: Share of the training, at its start, at three quarters of the image size.
        sets: The sets that it belongs to, of `SETS`.
    """

    about: str
    elip: Mapping[str, Any] | None = None
    control: str = ""
    coarse: float = 0.0
    sets: tuple[str, ...] = ()

    @property
    def config(self) -> ElipConfig | None:
        """The pruning configuration; None for no pruning."""
        return None if self.elip is None else ElipConfig.from_mapping(self.elip)

    @property
    def definition(self) -> dict[str, Any]:
        """What the variant is, in plain values, as the results log stores it."""
        elip = None if self.elip is None else dict(self.elip)
        return {"elip": elip, "control": self.control, "coarse": self.coarse}


def _stages(*stages: tuple[int, float]) -> list[dict[str, Any]]:
    return [{"block": block, "lookahead": 1, "keep": keep} for block, keep in stages]


# Token-layers left, at depth 12 and 64 patches: 0.90, 0.51, 0.42, 0.36; the presets leave 0.72.
MILD = {"stages": _stages((2, 0.97), (4, 0.88), (10, 0.75)), "reference_depth": 12}
HALF = {"stages": _stages((2, 0.60), (4, 0.38), (10, 0.25)), "reference_depth": 12}
LESS = {"stages": _stages((2, 0.45), (4, 0.27), (10, 0.20)), "reference_depth": 12}
THIRD = {"stages": _stages((1, 0.40), (4, 0.27), (8, 0.20)), "reference_depth": 12}
FAST: Mapping[str, Any] = {"preset": "fast"}
FINISH = {"final_unpruned": 0.2}
WARM = {"warmup": 0.3}
RANDOM = {"reducer": "random"}
BATCH = {"guide_source": "batch"}

SETS = {
    "main": "presets and the other reducers at the same token-layers",
    "text": "how much the text weighs, and whether dropped tokens are merged",
    "budget": "how many token-layers are left",
    "leak": "controls that show what the text does",
    "remedy": "what keeps the choice from carrying the caption",
    "trade": "the cheapest training that is as good",
    "lavis": "the smaller board of ALBEF and BLIP",
    "quick": "a few, in minutes",
}

REFERENCE = "full"
"""What all others are compared with."""

VARIANTS = {
    REFERENCE: Variant("no pruning", sets=tuple(SETS)),
    "paper": Variant("the paper's plan", {"preset": "paper"}, sets=("main", "leak", "lavis")),
    "fast": Variant("lookahead 1", FAST, sets=("main", "text", "budget", "leak", "lavis", "quick")),
    "evit": Variant("EViT", {"reducer": "evit"}, sets=("main",)),
    "tome": Variant("ToMe", {"reducer": "tome"}, sets=("main",)),
    "random": Variant("random dropping", RANDOM, sets=("main", "budget", "leak", "lavis", "quick")),
    "fast t=0": Variant(
        "image alone", {**FAST, "text_weight": 0.0}, sets=("text", "leak", "lavis")
    ),
    "fast t=0.5": Variant("more text", {**FAST, "text_weight": 0.5}, sets=("text",)),
    "fast unmerged": Variant("dropped, not merged", {**FAST, "merge": False}, sets=("text",)),
    "fast 0.90": Variant("mild cuts", MILD, sets=("budget",)),
    "fast 0.51": Variant("bold cuts", HALF, sets=("budget",)),
    "fast 0.36": Variant("bolder cuts", THIRD, sets=("budget",)),
    "random 0.51": Variant("bold cuts at random", {**HALF, **RANDOM}, sets=("budget",)),
    "paper shuffled": Variant(
        "guided by another's caption", {"preset": "paper"}, "shuffled", sets=("leak",)
    ),
    "paper t=0": Variant(
        "paper's plan, image alone", {"preset": "paper", "text_weight": 0.0}, sets=("leak",)
    ),
    "fast shuffled": Variant("guided by another's caption", FAST, "shuffled", sets=("leak",)),
    "random by caption": Variant(
        "the same tokens for the same caption", RANDOM, "by caption", sets=("leak",)
    ),
    "fast + finish": Variant(
        "last fifth unpruned", {**FAST, **FINISH}, sets=("remedy", "trade", "lavis", "quick")
    ),
    "fast + anneal": Variant(
        "text weight falls to 0 over the training", {**FAST, "text_anneal": 1.0}, sets=("remedy",)
    ),
    "fast by batch": Variant("guided by all texts", {**FAST, **BATCH}, sets=("remedy",)),
    "fast t=0.5 + finish": Variant(
        "more text, last fifth unpruned",
        {**FAST, **FINISH, "text_weight": 0.5},
        sets=("remedy", "trade"),
    ),
    "fast warm + finish": Variant(
        "setting in over three tenths, last fifth unpruned",
        {**FAST, **FINISH, **WARM},
        sets=("remedy", "trade"),
    ),
    "paper + finish": Variant(
        "last fifth unpruned", {"preset": "paper", **FINISH}, sets=("remedy", "trade")
    ),
    "random + finish": Variant(
        "last fifth unpruned", {**RANDOM, **FINISH}, sets=("remedy", "trade")
    ),
    "fast 0.51 + finish": Variant("bold, last fifth unpruned", {**HALF, **FINISH}, sets=("trade",)),
    "fast 0.51 t=0.5 + finish": Variant(
        "bold, more text", {**HALF, **FINISH, "text_weight": 0.5}, sets=("trade",)
    ),
    "fast 0.51 warm + finish": Variant(
        "bold, setting in over three tenths", {**HALF, **FINISH, **WARM}, sets=("trade",)
    ),
    "fast 0.51 t=0 warm + finish": Variant(
        "the same, image alone", {**HALF, **FINISH, **WARM, "text_weight": 0.0}, sets=("trade",)
    ),
    "random 0.51 warm + finish": Variant(
        "the same, at random", {**HALF, **RANDOM, **FINISH, **WARM}, sets=("trade",)
    ),
    "fast 0.51 t=0 + finish": Variant(
        "bold, image alone", {**HALF, **FINISH, "text_weight": 0.0}, sets=("trade",)
    ),
    "random 0.51 + finish": Variant(
        "bold, at random", {**HALF, **RANDOM, **FINISH}, sets=("trade",)
    ),
    "fast 0.42 + short finish": Variant(
        "bolder, last 0.15 unpruned", {**LESS, "final_unpruned": 0.15}, sets=("trade",)
    ),
    "random 0.42 + short finish": Variant(
        "bolder, at random", {**LESS, **RANDOM, "final_unpruned": 0.15}, sets=("trade",)
    ),
    "fast 0.36 + finish": Variant("bolder", {**THIRD, **FINISH}, sets=("trade",)),
    "fast 0.36 by batch + finish": Variant(
        "bolder, guided by all texts", {**THIRD, **FINISH, **BATCH}, sets=("trade",)
    ),
    "random 0.36 + finish": Variant(
        "bolder, at random", {**THIRD, **RANDOM, **FINISH}, sets=("trade",)
    ),
    "fast 0.36 warm + finish": Variant(
        "bolder, setting in over the first fifth",
        {**THIRD, **FINISH, "warmup": 0.2},
        sets=("trade",),
    ),
    "coarse + finish": Variant(
        "three quarters of the image size, last fifth whole", coarse=0.8, sets=("trade",)
    ),
}
"""By name, in the order of the table."""
