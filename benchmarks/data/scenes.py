"""Make scenes: several emojis on a coloured or textured grid, with captions and questions."""

from __future__ import annotations

import math
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.data.emojis import Emojis
from benchmarks.data.files import DataSetError
from benchmarks.data.icons import over
from benchmarks.data.names import draw

SIZES = {4: 64, 9: 72, 16: 64}
"""Side of a picture in pixels by the number of objects: each object covers whole patches of 8."""
COLOURS = {
    "red": (230, 60, 60),
    "green": (60, 200, 60),
    "blue": (70, 70, 230),
    "yellow": (230, 220, 60),
    "purple": (200, 70, 210),
    "cyan": (60, 210, 220),
    "orange": (240, 150, 50),
    "grey": (130, 130, 130),
}
TEXTURES = ("plain", "striped", "dotted", "checked")
NUMBERS = ("one", "two", "three", "four")
MIN_STYLES = 5
# Names that a small picture hardly tells apart.
_ALIKE = re.compile(
    r"(flag|keycap|man|woman|men|women|person|people|family|couple|kiss|clock|japanese|squared"
    r"|circled|white|black) .*|.* (oclock|thirty|button|arrow|sign|square|circle|cross)"
)

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Thing:
    """An object of a scene.

    Attributes:
        name: Which emoji.
        row: Its row in the grid, from 0.
        column: Its column, from 0.
        colour: The ground behind it, one of `COLOURS`.
        texture: One of `TEXTURES`.
        box: What it covers: left, top, right, bottom in pixels, the last two excluded.
    """

    name: str
    row: int
    column: int
    colour: str
    texture: str
    box: Box


@dataclass(frozen=True)
class Question:
    """A question about an object.

    Attributes:
        kind: "colour", "place" or "number".
        question: The question.
        answer: The answer.
        objects: Places of what is asked about in `Scene.things`; several if it is shown often.
    """

    kind: str
    question: str
    answer: str
    objects: tuple[int, ...]


@dataclass(frozen=True)
class Scene:
    """A picture of several objects.

    Attributes:
        picture: The picture [size, size, 3].
        things: Its objects, row by row.
        caption: Names one or more of them.
        mentions: Places in `things` of those that the caption names.
        questions: One of each kind.
    """

    picture: NDArray[np.uint8]
    things: tuple[Thing, ...]
    caption: str
    mentions: tuple[int, ...]
    questions: tuple[Question, ...]


class SceneMaker:
    """Makes scenes; the same arguments and number give the same scene.

    Args:
        emojis: What to draw.
        objects: Objects per scene: 4, 9 or 16.
        names: How many names occur in the scenes.
        seed: Decides which names, and the scenes.
        size: Side of a picture in pixels; None for that of `SIZES`.

    Raises:
        DataSetError: If an argument is out of range.
    """

    def __init__(
        self,
        emojis: Emojis,
        objects: int,
        names: int = 60,
        seed: int = 0,
        size: int | None = None,
    ) -> None:
        if objects not in SIZES:
            raise DataSetError(f"objects is {objects}, but must be one of {list(SIZES)}.")
        self.objects, self.seed = objects, seed
        self.side = math.isqrt(objects)
        self.size = SIZES[objects] if size is None else size
        if self.size % self.side or not 8 <= self.size // self.side <= 128:
            raise DataSetError(
                f"size is {self.size} pixels, but must be a multiple of {self.side}, from "
                f"{8 * self.side} to {128 * self.side}, so that {objects} objects have as many "
                "pixels each."
            )
        self.cell = self.size // self.side
        self.names = choose_names(emojis, names, objects, seed)
        self.stamps = _stamps(emojis, self.names, self.cell * 7 // 8)
        self.grounds = {
            (colour, texture): _ground(colour, texture, self.cell)
            for colour in COLOURS
            for texture in TEXTURES
        }
        self.answers = {
            "colour": list(COLOURS),
            "place": [_place(*divmod(i, self.side)) for i in range(objects)],
            "number": list(NUMBERS[: min(len(NUMBERS), objects - 1)]),
        }

    def make(self, split: str, number: int) -> Scene:
        """Make a scene.

        Args:
            split: "train" or "held_out".
            number: Which one, from 0.

        Returns:
            The scene.
        """
        rng = random.Random(f"{self.seed} {split} {number}")
        repeats = 1 + rng.randrange(len(self.answers["number"]))
        once = rng.sample(self.names, self.objects - repeats + 1)
        shown = once[:1] * repeats + once[1:]
        rng.shuffle(shown)
        picture = np.empty((self.size, self.size, 3), np.uint8)
        things = tuple(self._draw(picture, i, name, rng) for i, name in enumerate(shown))
        # What is shown once can be asked about and named without doubt.
        single = [i for i, name in enumerate(shown) if name in once[1:]]
        mentions, caption = self._describe(things, single, rng)
        return Scene(picture, things, caption, mentions, self._ask(things, single, once[0], rng))

    def _draw(self, picture: NDArray[np.uint8], index: int, name: str, rng: random.Random) -> Thing:
        """Draw an object and its ground into their cell of the picture."""
        row, column = divmod(index, self.side)
        colour, texture = rng.choice(self.answers["colour"]), rng.choice(TEXTURES)
        stamp, alpha = rng.choice(self.stamps[name])
        margin = self.cell - len(stamp)
        top, left = rng.randint(0, margin), rng.randint(0, margin)
        cell = self.grounds[colour, texture].copy()
        inside = (slice(top, top + len(stamp)), slice(left, left + len(stamp)))
        cell[inside] = over(stamp, alpha, cell[inside])
        y, x = row * self.cell, column * self.cell
        picture[y : y + self.cell, x : x + self.cell] = cell
        ys, xs = (places.tolist() for places in np.nonzero(alpha))
        x, y = x + left, y + top
        box = (x + min(xs), y + min(ys), x + max(xs) + 1, y + max(ys) + 1)
        return Thing(name, row, column, colour, texture, box)

    def _describe(
        self, things: Sequence[Thing], single: Sequence[int], rng: random.Random
    ) -> tuple[tuple[int, ...], str]:
        """Name an object by its ground, and one by its place or two by their relation."""
        first = rng.choice(single)
        ground = things[first].colour
        if things[first].texture != "plain":
            ground = f"{things[first].texture} {ground}"
        phrase = f"{things[first].name} on {ground}"
        pairs = [
            (i, i + step, relation)
            for i in single
            for step, relation in ((1, "left of"), (self.side, "above"))
            if i + step in single and (step > 1 or things[i].column + 1 < self.side)
        ]
        if pairs and rng.random() < 0.5:
            one, other, relation = rng.choice(pairs)
            also = [one, other]
            phrase += f", {things[one].name} {relation} {things[other].name}"
        else:
            also = [rng.choice([i for i in single if i != first] or [first])]
            thing = things[also[0]]
            named = "" if also == [first] else f", {thing.name}"
            phrase += f"{named} in {_place(thing.row, thing.column)}"
        return tuple(sorted({first, *also})), phrase

    def _ask(
        self, things: Sequence[Thing], single: Sequence[int], often: str, rng: random.Random
    ) -> tuple[Question, ...]:
        colour, place = rng.choice(single), rng.choice(single)
        counted = tuple(i for i, thing in enumerate(things) if thing.name == often)
        return (
            Question(
                "colour",
                f"what colour is behind the {things[colour].name}?",
                things[colour].colour,
                (colour,),
            ),
            Question(
                "place",
                f"where is the {things[place].name}?",
                _place(things[place].row, things[place].column),
                (place,),
            ),
            Question(
                "number",
                f"how many times is the {often} shown?",
                NUMBERS[len(counted) - 1],
                counted,
            ),
        )


def choose_names(emojis: Emojis, count: int, objects: int, seed: int) -> list[str]:
    """Choose names with pictures in five or more styles, without those that look alike.

    Args:
        emojis: The pictures.
        count: How many names.
        objects: Objects per scene, which need as many names.
        seed: Decides which.

    Returns:
        The names, in alphabetical order.

    Raises:
        DataSetError: If there are too few.
    """
    styles: dict[str, set[str]] = defaultdict(set)
    for name, style in zip(emojis.captions, emojis.styles):
        styles[name].add(style)
    able = [
        name
        for name, found in styles.items()
        if len(found) >= MIN_STYLES and not _ALIKE.fullmatch(name)
    ]
    if not objects <= count <= len(able):
        raise DataSetError(
            f"{count} names were asked for, but scenes of {objects} objects need {objects} or "
            f"more, and {len(able)} names have pictures in {MIN_STYLES} or more styles: pass "
            "another --names, or make the emojis with more --sets."
        )
    return sorted(sorted(able, key=lambda name: draw(name, seed))[:count])


def cell_box(index: int, objects: int, size: int) -> Box:
    """Compute the box of a cell of the grid: an object and the ground behind it.

    Args:
        index: Which cell, counted row by row.
        objects: How many cells there are: 4, 9 or 16.
        size: Side of the picture in pixels.

    Returns:
        Left, top, right and bottom in pixels, the last two excluded.
    """
    side = math.isqrt(objects)
    cell = size // side
    row, column = divmod(index, side)
    return column * cell, row * cell, (column + 1) * cell, (row + 1) * cell


def patches_in(box: Sequence[int], size: int, patch: int) -> list[int]:
    """List the patches whose centre lies in a box, so that a cell's are those of no other cell.

    Args:
        box: Left, top, right and bottom in pixels, the last two excluded.
        size: Side of the picture in pixels.
        patch: Side of a patch in pixels.

    Returns:
        Numbers of the patches, counted row by row from 0.
    """
    left, top, right, bottom = box
    centres = [(i, i * patch + patch / 2) for i in range(size // patch)]
    return [
        row * (size // patch) + column
        for row, y in centres
        if top <= y < bottom
        for column, x in centres
        if left <= x < right
    ]


def _place(row: int, column: int) -> str:
    return f"row {row + 1} column {column + 1}"


def _ground(colour: str, texture: str, cell: int) -> NDArray[np.uint8]:
    """Paint the ground of a cell; a texture is darker in places."""
    y, x = np.indices((cell, cell)) // max(1, cell // 12) % 2 == 0
    dark = {"plain": y & ~y, "striped": y, "dotted": y & x, "checked": y ^ x}[texture]
    light = np.array(COLOURS[colour], np.uint8)
    return np.where(dark[..., None], (light * 0.75).astype(np.uint8), light)


def _stamps(
    emojis: Emojis, names: Sequence[str], size: int
) -> dict[str, list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]]:
    """Shrink the pictures of each name, with how opaque they are."""
    stamps: dict[str, list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]] = {n: [] for n in names}
    for picture, alpha, name in zip(emojis.pictures, emojis.alpha, emojis.captions):
        if name in stamps:
            stamps[name].append(_shrunk(picture, alpha, size))
    return stamps


def _shrunk(
    picture: NDArray[np.uint8], alpha: NDArray[np.uint8], size: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    box = Image.Resampling.BOX
    small = Image.fromarray(picture).resize((size, size), box)
    share = np.asarray(Image.fromarray(alpha).resize((size, size), box))
    # Over white was c * a + 255 * (1 - a): take the white out, for another ground.
    opaque = np.maximum(share, 1).astype(np.float64)[..., None] / 255
    colours = (np.asarray(small) - 255 * (1 - opaque)) / opaque
    return np.clip(np.rint(colours), 0, 255).astype(np.uint8), share
