"""Mosaics: several photographs, each in a frame of a color, with questions about one of them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmarks.board.recipe import SIDE
from benchmarks.data.files import DataSetError
from benchmarks.data.names import draw
from benchmarks.data.scenes import COLOURS, SIZES, Box, Question, Scene, Thing
from benchmarks.photos.folder import (
    read_boxes,
    read_classes,
    read_train,
    read_train_boxes,
    read_validation,
)

FRAME = 2
"""Width of the frame in pixels."""

PHOTOGRAPHS = 500
"""Photographs of a class to train on: all."""


class MosaicMaker:
    """Makes mosaics; the same arguments and number give the same mosaic.

    Args:
        data: Folder of Tiny ImageNet: its photographs to train on are those of the train split,
            those to validate on of the held-out one.
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
        classes = [name.lower() for _, name in read_classes(data)]
        if objects not in (4, 9) or not objects <= names <= len(classes):
            raise DataSetError(
                f"objects is {objects} and names {names}, but objects must be 4 or 9, and names "
                f"from as many to {len(classes)}."
            )
        self.objects, self.seed, self.size = objects, seed, SIZES[objects]
        self.side = math.isqrt(objects)
        self.cell = self.size // self.side
        self.names = sorted(sorted(classes, key=lambda name: draw(name, seed))[:names])
        places = sorted(classes.index(name) for name in self.names)
        order = [classes[place] for place in places]
        shown = read_train(data, cache, places, 0, PHOTOGRAPHS)
        held = read_validation(data, cache).of(places)
        boxes = torch.tensor(read_boxes(data))
        own = torch.isin(read_validation(data, cache).own, torch.tensor(places))
        self.photographs = {
            "train": self._sorted(shown.of(places).own, shown.pictures,
                                  torch.tensor(read_train_boxes(data, places, 0, PHOTOGRAPHS)), order),
            "held_out": self._sorted(held.own, held.pictures, boxes[own], order),
        }  # fmt: skip
        self.answers = {
            "colour": list(COLOURS),
            "place": [_place(*divmod(i, self.side)) for i in range(objects)],
            "thing": self.names,
            "neighbour": self.names,
        }

    def _sorted(
        self, own: Tensor, pictures: Tensor, boxes: Tensor, order: Sequence[str]
    ) -> dict[str, list[tuple[NDArray[np.uint8], Box]]]:
        """Shrink photographs and boxes into what a frame leaves, class by class."""
        inside = self.cell - 2 * FRAME
        found: dict[str, list[tuple[NDArray[np.uint8], Box]]] = {name: [] for name in order}
        for place, picture, box in zip(own.tolist(), pictures, boxes.tolist(), strict=True):
            image = Image.fromarray(picture.permute(1, 2, 0).numpy())
            small = np.asarray(image.resize((inside, inside), Image.Resampling.BOX))
            scaled = [edge * inside / SIDE for edge in box]
            left, top = (math.floor(edge) for edge in scaled[:2])
            right, bottom = (math.ceil(edge) for edge in scaled[2:])
            found[order[place]].append((small, (left, top, right, bottom)))
        return found

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
        things = []
        for index, name in enumerate(shown):
            row, column = divmod(index, self.side)
            colour = rng.choice(self.answers["colour"])
            small, box = rng.choice(self.photographs[split][name])
            y, x = row * self.cell, column * self.cell
            picture[y : y + self.cell, x : x + self.cell] = COLOURS[colour]
            y, x = y + FRAME, x + FRAME
            picture[y : y + len(small), x : x + len(small)] = small
            left, top, right, bottom = box
            things.append(
                Thing(name, row, column, colour, "plain", (x + left, y + top, x + right, y + bottom))
            )
        colour, place, asked, thing = (rng.randrange(self.objects) for _ in range(4))
        neighbours = [
            (relation, i)
            for relation, i in (
                ("left of", asked - 1 if asked % self.side else -1),
                ("right of", asked + 1 if (asked + 1) % self.side else -1),
                ("above", asked - self.side),
                ("below", asked + self.side),
            )
            if 0 <= i < self.objects
        ]
        relation, other = rng.choice(neighbours)
        questions = (
            Question("colour", f"what colour is around the {shown[colour]}?",
                     things[colour].colour, (colour,)),
            Question("place", f"where is the {shown[place]}?",
                     _place(things[place].row, things[place].column), (place,)),
            Question("thing", f"what is in {_place(*divmod(thing, self.side))}?", shown[thing], (thing,)),
            Question("neighbour", f"what is {relation} the {shown[asked]}?", shown[other], (asked, other)),
        )  # fmt: skip
        return Scene(picture, tuple(things), " and ".join(shown), tuple(range(self.objects)), questions)


def _place(row: int, column: int) -> str:
    return f"row {row + 1} column {column + 1}"
