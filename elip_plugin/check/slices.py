"""Parts of the pictures that may fare worse: by folder, by size, by how busy they are."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elip_plugin.check.embed import Progress, fill, read_ahead
from elip_plugin.check.store import Rows, Store
from elip_plugin.pictures import Item

SIDE = 224
"""Pixels of the longer side at which it is measured how busy a picture is, at most."""

QUALITY = 75
"""Of the JPEG by which that is measured."""

PER_BATCH = 64
"""Pictures that are looked at between two writes."""

FEWEST = 10
"""Pictures of a slice at least."""


@dataclass(frozen=True)
class Slice:
    """Some of the pictures.

    Attributes:
        kind: What they have in common: "folder", "size" or "busy".
        name: Which of these they are.
        places: Their places among the pictures.
    """

    kind: str
    name: str
    places: NDArray[np.intp]


def look(image: Any) -> tuple[float, float, float]:
    """Measure a picture.

    Args:
        image: Of Pillow, RGB.

    Returns:
        Width and height in pixels, and how busy it is: bytes per pixel of a small gray JPEG.
        Text, foliage and noise have many, sky and plain ground few.
    """
    small = image.convert("L")
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY)
    return *image.size, buffer.tell() / (small.size[0] * small.size[1])


def look_at_all(
    items: Sequence[Item], folder: Path, progress: Progress
) -> tuple[Rows, dict[int, str]]:
    """Measure pictures, each once, and find those that are broken.

    Args:
        items: The pictures.
        folder: Where the measures are kept.
        progress: Told how far it is.

    Returns:
        What `look` says [N, 3] of those that can be read; what is wrong with the others, by place.
    """
    return fill(
        Store(folder / "looks"),
        [item.key for item in items],
        read_ahead(items, look, PER_BATCH),
        lambda looks: np.array(looks, np.float32),
        lambda done: progress("looking at the pictures", done, len(items)),
    )


def slices(items: Sequence[Item], looks: Rows) -> list[Slice]:
    """Divide pictures by their folder or shard, and into thirds by size and by how busy they are.

    Args:
        items: The pictures.
        looks: What `look` says of them [N, 3].

    Returns:
        The slices with `FEWEST` pictures or more; none where all pictures are in one.
    """
    folders = np.array([item.group for item in items])
    shorter = np.minimum(looks[:, 0], looks[:, 1])
    made = [
        *_by_name("folder", folders),
        *_thirds("size", shorter, "{} px", 0),
        *_thirds("busy", looks[:, 2], "{} bytes per pixel", 3),
    ]
    return [each for each in made if FEWEST <= len(each.places) < len(items)]


def _by_name(kind: str, names: NDArray[Any]) -> Iterator[Slice]:
    for name in np.unique(names):
        yield Slice(kind, str(name) or ".", np.flatnonzero(names == name))


def _thirds(kind: str, values: NDArray[np.float32], unit: str, digits: int) -> Iterator[Slice]:
    edges = np.unique(np.quantile(values, (1 / 3, 2 / 3)))
    part = np.searchsorted(edges, values)
    for number in np.unique(part):
        inside = values[part == number]
        ends = dict.fromkeys(f"{end:.{digits}f}" for end in (inside.min(), inside.max()))
        yield Slice(kind, unit.format(" to ".join(ends)), np.flatnonzero(part == number))
