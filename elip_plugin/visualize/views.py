"""What is drawn, and its description in words: for titles, and for readers who do not see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StageView:
    """What is left of a picture after one stage."""

    block: int  # before which it pruned
    kept: tuple[int, ...]  # patches that are still tokens of their own
    merged: dict[int, float]  # weights in the token that this stage made, 0 to 1, by patch
    earlier: tuple[int, ...]  # in a token that an earlier stage made, and this one kept
    gone: tuple[int, ...]  # patches that were dropped
    until: int | None = None  # the block before which those come back
    groups: tuple[tuple[int, ...], ...] = ()  # the patches of each token that is an average

    @property
    def opacities(self) -> dict[int, float]:
        """How strongly each merged patch is colored: the more it weighs, the stronger."""
        heaviest = max(self.merged.values(), default=0.0) or 1.0
        return {patch: 0.35 + 0.55 * weight / heaviest for patch, weight in self.merged.items()}

    def describe(self) -> str:
        """Describe what is left after the stage."""
        if self.groups:
            patches, tokens = sum(map(len, self.groups)), len(self.groups)
            return (
                f"{len(self.kept) + tokens} tokens: {len(self.kept)} of one patch, {tokens} of "
                f"{patches} similar ones"
            )
        counts = [len(part) for part in (self.kept, self.merged, self.earlier, self.gone)]
        away = "dropped" if self.until is None else f"set aside until block {self.until}"
        words = ("kept", "in one merged token", "in an earlier one", away)
        others = [f"{n} {word}" for n, word in zip(counts[1:], words[1:]) if n]
        return ", ".join([f"{counts[0]} of {sum(counts)} patches kept", *others])


@dataclass(frozen=True)
class Row:
    """One picture with one text, which is None for the image alone."""

    picture: int  # its place in `Visualization.pictures`
    text: str | None
    stages: tuple[StageView, ...]
    differing: int | None  # patches kept at last that the picture's first row lost; None for that


@dataclass(frozen=True)
class Visualization:
    """All that is drawn."""

    label: str  # model, plan, evaluation and weights
    plan: str
    grid: tuple[int, int]  # rows and columns of patches
    pictures: tuple[tuple[str, Any], ...]  # names, and Pillow images as the model sees them
    rows: tuple[Row, ...]

    @property
    def column_titles(self) -> list[str]:
        """One title for the whole picture, then one per stage."""
        stages = self.rows[0].stages if self.rows else ()
        return ["as the model sees it", *(f"before block {stage.block}" for stage in stages)]

    def row_title(self, row: Row) -> str:
        """Build the title of a row."""
        title = "the image alone" if row.text is None else f"“{row.text}”"
        if len(self.pictures) > 1:
            title = f"{self.pictures[row.picture][0]}: {title}"
        if row.differing is not None:
            patches = "patch" if row.differing == 1 else "patches"
            title += f" ({row.differing} {patches} kept by the last stage that the first row lost)"
        return title
