"""What is compared: plans, reducers, schedules, and controls that show what the text does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from elip_plugin import ElipConfig

ROUNDING = 1e-9
"""Shares of a training are compared with: 3 of 10 steps are 0.3 of it, in binary too."""

CONTROLS = ("", "shuffled text", "sign turned", "another picture's choice")


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        about: What it is, for the table.
        elip: An ELIP config; None for no pruning.
        control: One of `CONTROLS`: guide each picture by another's caption, or by its own with
            the sign turned round; or keep what was chosen for another picture.
        small_until: Share of the training, at its start, with pictures of half the side.
        then: Configs that take the place of `elip` one after the other, each with the share of
            the training after which it does; None for no pruning. The shares increase.
        rate: Factor of the learning rate.
    """

    about: str
    elip: Mapping[str, Any] | None = None
    control: str = ""
    small_until: float = 0.0
    then: Sequence[tuple[float, Mapping[str, Any] | None]] = ()
    rate: float = 1.0

    @property
    def config(self) -> ElipConfig | None:
        """The pruning configuration that a training begins with; None for no pruning."""
        return self.config_at(0.0)

    @property
    def is_config(self) -> bool:
        """Whether a training command can train it by its ELIP config alone."""
        return not self.control and not self.small_until and not self.then and self.rate == 1

    def elip_at(self, done: float) -> Mapping[str, Any] | None:
        """Return the config in force, in plain values.

        Args:
            done: Share of the training that is done, 0 to 1.

        Returns:
            `elip`, or what took its place; None for no pruning.
        """
        found = self.elip
        for share, elip in self.then:
            if done + ROUNDING >= share:
                found = elip
        return found

    def config_at(self, done: float) -> ElipConfig | None:
        """Return the pruning configuration in force; see `elip_at`."""
        elip = self.elip_at(done)
        return None if elip is None else _read(json.dumps(elip))

    @property
    def definition(self) -> dict[str, Any]:
        """What the variant is, in plain values, as the results log stores it."""
        made: dict[str, Any] = {
            "elip": None if self.elip is None else dict(self.elip),
            "control": self.control,
            "small_until": self.small_until,
        }
        if self.then:
            made["then"] = [[share, elip and dict(elip)] for share, elip in self.then]
        if self.rate != 1:
            made["rate"] = self.rate
        return made


@cache
def _read(elip: str) -> ElipConfig:
    return ElipConfig.from_mapping(json.loads(elip))


def _stages(*stages: tuple[int, float]) -> dict[str, Any]:
    listed = [{"block": block, "lookahead": 1, "keep": keep} for block, keep in stages]
    return {"stages": listed, "reference_depth": 12}


FAST: Mapping[str, Any] = {"preset": "fast"}
PAPER: Mapping[str, Any] = {"preset": "paper"}
# Token-layers left of 64 patches, on average over the blocks: 0.51, as the input's half.
STAGED_HALF = _stages((2, 0.60), (4, 0.38), (10, 0.25))
INPUT = {keep: _stages((0, keep)) for keep in (0.7, 0.5, 0.35, 0.25)}
SKIP = {
    "stages": [{"block": 2, "lookahead": 1, "keep": 0.25, "until": 10}],
    "reference_depth": 12,
}
END = {"final_unpruned": 0.15}
WARM = {"warmup": 0.3}
RANDOM = {"reducer": "random"}
NO_TEXT = {"text_weight": 0.0}

TOME = {**INPUT[0.5], "reducer": "tome"}
POOL = {**INPUT[0.25], "reducer": "pool"}

REFERENCE = "unpruned"
"""What all others are compared with."""

VARIANTS = {
    REFERENCE: Variant("all tokens"),
    "paper": Variant("the paper's plan", PAPER),
    "paper, end": Variant("the same, unpruned end", {**PAPER, **END}),
    "fast": Variant("lookahead 1", FAST),
    "fast, end": Variant("the same, unpruned end", {**FAST, **END}),
    "fast, warm, end": Variant("the same, setting in slowly", {**FAST, **WARM, **END}),
    "random 0.5": Variant("random half at the input", {**INPUT[0.5], **RANDOM}),
    **{
        f"random {keep}, end": Variant(
            f"{keep} of the patches at the input, at random, unpruned end",
            {**INPUT[keep], **RANDOM, **END},
        )
        for keep in INPUT
    },
    "random staged, end": Variant(
        "half of the token-layers, at random, unpruned end",
        {**STAGED_HALF, **RANDOM, **END},
    ),
    "attention staged, end": Variant(
        "half of the token-layers, by the class token's attention, unpruned end",
        {**STAGED_HALF, **NO_TEXT, **END},
    ),
    **{
        f"text {weight} staged, end": Variant(
            f"the same, text weight {weight}", {**STAGED_HALF, "text_weight": weight, **END}
        )
        for weight in (0.2, 0.5, 0.8)
    },
    "text 0.5 shuffled": Variant(
        "text weight 0.5, but another picture's caption",
        {**STAGED_HALF, "text_weight": 0.5, **END},
        "shuffled text",
    ),
    "text 0.5 turned": Variant(
        "text weight 0.5, the text's sign turned round",
        {**STAGED_HALF, "text_weight": 0.5, **END},
        "sign turned",
    ),
    "attention of another": Variant(
        "what attention chose for another picture",
        {**STAGED_HALF, **NO_TEXT, **END},
        "another picture's choice",
    ),
    "similarity staged, end": Variant(
        "half of the token-layers, by similarity to the text in the joint embedding, unpruned end",
        {**STAGED_HALF, "reducer": "similarity", **END},
    ),
    "similarity shuffled": Variant(
        "the same, but another picture's caption",
        {**STAGED_HALF, "reducer": "similarity", **END},
        "shuffled text",
    ),
    "similarity turned": Variant(
        "the same, the text's sign turned round",
        {**STAGED_HALF, "reducer": "similarity", **END},
        "sign turned",
    ),
    "similarity of the batch": Variant(
        "the same, by the batch's texts, weighted by their similarity to the picture",
        {**STAGED_HALF, "reducer": "similarity", "guide_source": "batch", **END},
    ),
    "evit staged, end": Variant(
        "half of the token-layers by EViT, unpruned end",
        {**STAGED_HALF, "reducer": "evit", **END},
    ),
    "tome": Variant(
        "similar tokens merge in every block by ToMe, in the whole training (the preset half)",
        TOME,
    ),
    "tome, end": Variant(
        "half of the token-layers by ToMe, unpruned end",
        {**STAGED_HALF, "reducer": "tome", **END},
    ),
    "tome 0.36": Variant(
        "each block merges the same share of its tokens by ToMe, down to 0.36 of the token-layers "
        "(the preset third)",
        {**_stages((0, 0.36)), "reducer": "tome"},
    ),
    "tome 0.38": Variant(
        "the same, down to 0.38 of the token-layers",
        {**_stages((0, 0.38)), "reducer": "tome"},
    ),
    "tome 0.48, end": Variant(
        "the same, down to 0.48 of the token-layers, unpruned end (the preset level)",
        {**_stages((0, 0.48)), "reducer": "tome", **END},
    ),
    "unique staged, end": Variant(
        "half of the token-layers by uniqueness of keys, unpruned end",
        {**STAGED_HALF, "reducer": "unique", **END},
    ),
    "gumbel staged, end": Variant(
        "half of the token-layers, drawn in proportion to attention, unpruned end",
        {**STAGED_HALF, "reducer": "gumbel", **NO_TEXT, **END},
    ),
    "gumbel text 0.5 staged, end": Variant(
        "the same, text weight 0.5",
        {**STAGED_HALF, "reducer": "gumbel", "text_weight": 0.5, **END},
    ),
    "cluster 0.5, end": Variant(
        "half of the patches at the input, similar ones leave first, unpruned end",
        {**INPUT[0.5], "reducer": "cluster", **END},
    ),
    "random skip, end": Variant(
        "three quarters of the tokens, at random, skip the middle blocks, unpruned end",
        {**SKIP, **RANDOM, **END},
    ),
    "pool, end": Variant(
        "the picture at half its side, by the plan, unpruned end",
        {**POOL, **END},
    ),
    "pool, long end": Variant(
        "the picture at half its side, by the plan; last two fifths unpruned (the preset lowres)",
        {**POOL, "final_unpruned": 0.4},
    ),
    "pool, short end": Variant("the same, last tenth unpruned", {**POOL, "final_unpruned": 0.1}),
    "pool, end, rate 1.5": Variant(
        "the picture at half its side, by the plan, unpruned end; 1.5 times the learning rate",
        {**POOL, **END},
        rate=1.5,
    ),
    "pool, tome": Variant(
        "the picture at half its side, by the plan; in the last third ToMe",
        POOL,
        then=((0.67, TOME),),
    ),
    "pool, tome, end": Variant(
        "the picture at half its side, by the plan, then ToMe; last tenth unpruned",
        POOL,
        then=((0.7, TOME), (0.9, None)),
    ),
    "pool, random, end": Variant(
        "the picture at half its side, by the plan, then random half; last tenth unpruned",
        POOL,
        then=((0.7, {**INPUT[0.5], **RANDOM}), (0.9, None)),
    ),
    "tome, rate 1.5": Variant(
        "similar tokens merge in every block by ToMe; 1.5 times the learning rate", TOME, rate=1.5
    ),
    "unpruned, rate 1.5": Variant("all tokens; 1.5 times the learning rate", rate=1.5),
    "small, end": Variant(
        "the picture at half its side, by the data, whole at the end", small_until=0.85
    ),
}
"""By name, in the order of the table."""
