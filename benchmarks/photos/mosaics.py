"""Mosaics: several photographs, each in a frame of some color, and questions about one of them.

They have the form of the scenes of emojis (`benchmarks.data.scenes`), so that the study of
questions (`benchmarks.vqa`) trains on either.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.board.recipe import SIDE
from benchmarks.data.files import DataSetError
from benchmarks.data.names import draw
from benchmarks.data.scene_files import write_made
from benchmarks.data.scenes import COLOURS, SIZES, Box, Question, Scene, Thing
from benchmarks.photos.folder import (
    Photos,
    read_boxes,
    read_classes,
    read_train,
    read_train_boxes,
    read_validation,
)

FRAME = 2
"""Width of a frame in pixels."""

PHOTOGRAPHS = 500
"""Photographs of a class to train on: all that there are."""


class Tile(NamedTuple):
    """A photograph without its frame, and the box of its object in it."""

    picture: NDArray[np.uint8]
    box: Box


class MosaicMaker:
    """Makes mosaics; the same arguments and number give the same mosaic.

    What is trained on is made of the photographs to train on, what is held out of those to
    validate on.

    Args:
        data: Folder of Tiny ImageNet.
        cache: Folder in which the photographs are kept as arrays.
        objects: Photographs per mosaic: 4 or 9.
        names: How many classes occur.
        seed: Decides which classes, and the mosaics.

    Raises:
        DataSetError: If an argument is out of range.
        FolderError: If the folder is not Tiny ImageNet's.
    """

    def __init__(
        self, data: Path, cache: Path, objects: int, names: int = 16, seed: int = 0
    ) -> None:
        known = [name.lower() for _, name in read_classes(data)]
        if objects not in (4, 9) or not objects <= names <= len(known):
            raise DataSetError(
                f"objects is {objects} and names is {names}, but objects must be 4 or 9, and "
                f"names from {objects} to {len(known)}."
            )
        self.objects, self.seed, self.size = objects, seed, SIZES[objects]
        self.side = math.isqrt(objects)
        self.cell = self.size // self.side
        self.names = sorted(sorted(known, key=lambda name: draw(name, seed))[:names])
        places = sorted(known.index(name) for name in self.names)
        held_out = read_validation(data, cache)
        mine = [i for i, place in enumerate(held_out.own.tolist()) if place in places]
        boxes = read_boxes(data)
        parts = {
            "train": (
                read_train(data, cache, places, 0, PHOTOGRAPHS),
                read_train_boxes(data, places, 0, PHOTOGRAPHS),
            ),
            "held_out": (
                Photos(held_out.pictures[mine], held_out.own[mine]),
                [boxes[i] for i in mine],
            ),
        }
        self.tiles = {split: self._tiles(*part, known) for split, part in parts.items()}
        self.answers = {
            "colour": list(COLOURS),
            "place": [_place(i, self.side) for i in range(objects)],
            "neighbour": self.names,
        }

    def _tiles(
        self, photos: Photos, boxes: Sequence[tuple[int, ...]], known: Sequence[str]
    ) -> dict[str, list[Tile]]:
        """Shrink photographs, and their boxes, to what a frame leaves; by class."""
        side = self.cell - 2 * FRAME
        tiles: dict[str, list[Tile]] = {name: [] for name in self.names}
        for place, pixels, box in zip(photos.own.tolist(), photos.pictures, boxes, strict=True):
            image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            small = np.asarray(image.resize((side, side), Image.Resampling.BOX))
            left, top, right, bottom = (edge * side / SIDE for edge in box)
            outer = math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)
            tiles[known[place]].append(Tile(small, outer))
        return tiles

    def make(self, split: str, number: int) -> Scene:
        """Make a mosaic.

        Args:
            split: "train" or "held_out".
            number: Which one, from 0.

        Returns:
            The mosaic.
        """
        rng = random.Random(f"{self.seed} {split} {number}")
        shown = rng.sample(self.names, self.objects)
        picture = np.empty((self.size, self.size, 3), np.uint8)
        things = tuple(self._put(picture, i, name, split, rng) for i, name in enumerate(shown))
        caption = " and ".join(shown)
        return Scene(picture, things, caption, tuple(range(self.objects)), self._ask(things, rng))

    def _put(
        self, picture: NDArray[np.uint8], index: int, name: str, split: str, rng: random.Random
    ) -> Thing:
        """Put a photograph and its frame into their cell."""
        row, column = divmod(index, self.side)
        colour, tile = rng.choice(self.answers["colour"]), rng.choice(self.tiles[split][name])
        y, x = row * self.cell, column * self.cell
        picture[y : y + self.cell, x : x + self.cell] = COLOURS[colour]
        y, x, side = y + FRAME, x + FRAME, self.cell - 2 * FRAME
        picture[y : y + side, x : x + side] = tile.picture
        left, top, right, bottom = tile.box
        box = (x + left, y + top, x + right, y + bottom)
        return Thing(name, row, column, colour, "plain", box)

    def _ask(self, things: Sequence[Thing], rng: random.Random) -> tuple[Question, ...]:
        framed, sought, beside = (rng.randrange(self.objects) for _ in range(3))
        relation, other = rng.choice(list(self._neighbours(beside).items()))
        return (
            Question(
                "colour",
                f"what colour is around the {things[framed].name}?",
                things[framed].colour,
                (framed,),
            ),
            Question(
                "place",
                f"where is the {things[sought].name}?",
                _place(sought, self.side),
                (sought,),
            ),
            Question(
                "neighbour",
                f"what is {relation} the {things[beside].name}?",
                things[other].name,
                (beside, other),
            ),
        )

    def _neighbours(self, index: int) -> dict[str, int]:
        """Find the photographs beside one, by how they lie to it."""
        row, column = divmod(index, self.side)
        beside = {
            "left of": (row, column - 1),
            "right of": (row, column + 1),
            "above": (row - 1, column),
            "below": (row + 1, column),
        }
        inside = range(self.side)
        return {
            relation: self.side * y + x
            for relation, (y, x) in beside.items()
            if y in inside and x in inside
        }


def write_mosaics(
    out: Path,
    data: Path,
    cache: Path,
    objects: int,
    *,
    names: int = 16,
    train: int = 20_000,
    held_out: int = 2_000,
) -> dict[str, Any]:
    """Write both splits of mosaics; what is there already is not made again.

    Args:
        out: Folder to write to; new, empty, or of an earlier run.
        data: Folder of Tiny ImageNet.
        cache: Folder in which the photographs are kept as arrays.
        objects: Photographs per mosaic: 4 or 9.
        names: How many classes occur.
        train: Mosaics to train on.
        held_out: Mosaics to score on, of other photographs.

    Returns:
        The manifest.

    Raises:
        DataSetError: If an argument is out of range or a folder cannot be used.
        FolderError: If the data are not Tiny ImageNet's.
    """
    maker = MosaicMaker(data, cache, objects, names)
    settings = {
        "photographs": PHOTOGRAPHS,
        "objects": objects,
        "names": names,
        "scenes": {"train": train, "held_out": held_out},
        "seed": maker.seed,
        "size": maker.size,
    }
    return write_made(out, maker, settings)


def _place(index: int, side: int) -> str:
    row, column = divmod(index, side)
    return f"row {row + 1} column {column + 1}"
