"""Tiny ImageNet as it is unpacked: 200 classes of 500 photographs, 50 more of each to validate.

    wnids.txt                           a class per line, by its WordNet id
    words.txt                           id, tab, its names joined by commas
    train/ID/images/ID_0.JPEG ...
    val/images/val_0.JPEG ...
    val/val_annotations.txt             file, id and box of each, split by tabs

The photographs that a training needs are read once and kept as one array in a folder for caches.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.board.recipe import SIDE


class FolderError(Exception):
    """A folder is not Tiny ImageNet's; the message says what to do."""


class PhotoClass(NamedTuple):
    """A class: its WordNet id, and the first of its names."""

    wnid: str
    name: str


@dataclass(frozen=True)
class Photos:
    """Photographs of classes.

    Attributes:
        pictures: The photographs [N, 3, 64, 64], uint8.
        own: The class of each [N], as a place in `read_classes`.
    """

    pictures: Tensor
    own: Tensor

    def of(self, classes: Sequence[int]) -> Photos:
        """Return the photographs of some classes, which are numbered anew in their order."""
        chosen = torch.isin(self.own, torch.tensor(classes))
        places = {number: place for place, number in enumerate(classes)}
        own = torch.tensor([places[number] for number in self.own[chosen].tolist()])
        return Photos(self.pictures[chosen], own)


def read_classes(folder: Path) -> list[PhotoClass]:
    """Read the classes.

    Args:
        folder: The data set.

    Returns:
        The classes in the order of their ids.

    Raises:
        FolderError: If the folder is not Tiny ImageNet's, or two classes have the same name.
    """
    ids = sorted(_read(folder, "wnids.txt").split())
    lines = _read(folder, "words.txt").splitlines()
    words = dict(line.split("\t", 1) for line in lines if "\t" in line)
    unknown = [wnid for wnid in ids if wnid not in words]
    if unknown or not ids:
        raise _fault(folder, f"words.txt has no name for {unknown or 'any class'}")
    classes = [PhotoClass(wnid, words[wnid].split(",")[0].strip()) for wnid in ids]
    names = [name for _, name in classes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise _fault(folder, f"several classes are called {twice}")
    return classes


def read_train(folder: Path, cache: Path, classes: Sequence[int], first: int, each: int) -> Photos:
    """Read photographs to train on.

    Args:
        folder: The data set.
        cache: Folder in which they are kept as one array.
        classes: Which classes, as places in `read_classes`.
        first: How many photographs of each class are left out, in the order of their numbers.
        each: How many are read after those.

    Returns:
        The photographs, class by class.

    Raises:
        FolderError: If a class has fewer photographs.
    """
    known = read_classes(folder)
    files: list[Path] = []
    for place in classes:
        wnid = known[place].wnid
        found = sorted((folder / "train" / wnid / "images").glob(f"{wnid}_*.JPEG"), key=_number)
        if len(found) < first + each:
            raise _fault(
                folder, f"train/{wnid}/images has {len(found)} photographs, not {first + each}"
            )
        files += found[first : first + each]
    own = torch.tensor([place for place in classes for _ in range(each)])
    return Photos(_stack(files, folder, cache), own)


def read_validation(folder: Path, cache: Path) -> Photos:
    """Read the photographs to score on.

    Args:
        folder: The data set.
        cache: Folder in which they are kept as one array.

    Returns:
        The photographs of all classes, in the order of their file.

    Raises:
        FolderError: If one is of no known class, or is missing.
    """
    places = {wnid: place for place, (wnid, _) in enumerate(read_classes(folder))}
    rows = _annotations(folder)
    strange = [row[0] for row in rows if len(row) < 2 or row[1] not in places]
    if strange or not rows:
        raise _fault(folder, f"val/val_annotations.txt names no class for {strange[:3]}")
    files = [folder / "val" / "images" / row[0] for row in rows]
    return Photos(_stack(files, folder, cache), torch.tensor([places[row[1]] for row in rows]))


def read_boxes(folder: Path) -> list[tuple[int, ...]]:
    """Read the boxes of the objects in the photographs of `read_validation`.

    Args:
        folder: The data set.

    Returns:
        Left, top, right and bottom in pixels, the last two excluded.

    Raises:
        FolderError: If a photograph has no box.
    """
    rows = _annotations(folder)
    return _boxes([row[2:] for row in rows], folder, "val/val_annotations.txt")


def read_train_boxes(
    folder: Path, classes: Sequence[int], first: int, each: int
) -> list[tuple[int, ...]]:
    """Read the boxes of the objects in the photographs of `read_train`; see `read_boxes`."""
    known = read_classes(folder)
    boxes: list[tuple[int, ...]] = []
    for place in classes:
        wnid = known[place].wnid
        name = f"train/{wnid}/{wnid}_boxes.txt"
        lines = _read(folder, name).splitlines()
        rows = sorted((line.split("\t") for line in lines), key=lambda row: _number(Path(row[0])))
        boxes += _boxes([row[1:] for row in rows[first : first + each]], folder, name)
    return boxes


def _boxes(rows: Sequence[Sequence[str]], folder: Path, name: str) -> list[tuple[int, ...]]:
    try:
        boxes = [tuple(map(int, row)) for row in rows]
    except ValueError:
        boxes = []
    if not boxes or {len(box) for box in boxes} != {4}:
        raise _fault(folder, f"{name} has no box of four numbers per photograph")
    return [(left, top, right + 1, bottom + 1) for left, top, right, bottom in boxes]


def _annotations(folder: Path) -> list[list[str]]:
    return [row.split("\t") for row in _read(folder, "val/val_annotations.txt").splitlines()]


def _number(path: Path) -> int:
    return int(path.stem.rpartition("_")[2])


def _stack(files: Sequence[Path], folder: Path, cache: Path) -> Tensor:
    """Return photographs [N, 3, 64, 64] from the cache, where they are written first if needed."""
    try:
        key = json.dumps([[str(path.relative_to(folder)), path.stat().st_size] for path in files])
    except OSError as error:
        raise _fault(folder, str(error)) from error
    kept = cache / f"photographs-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        pictures = np.stack([_picture(path, folder) for path in files])
        _write(kept, lambda path: np.save(path, pictures))
    # Copy on write: the pages are shared by all processes, and no training changes them.
    return torch.from_numpy(np.load(kept, mmap_mode="c")).permute(0, 3, 1, 2)


def _picture(path: Path, folder: Path) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    with Image.open(path) as image:
        if image.size != (SIDE, SIDE):
            raise _fault(folder, f"{path.name} has {image.size} pixels, not {SIDE} x {SIDE}")
        return np.asarray(image.convert("RGB"))


def _write(path: Path, write: Callable[[Path], None]) -> None:
    partial = path.with_name(f"{os.getpid()}-{path.name}")
    write(partial)
    partial.rename(path)  # a killed process leaves no half a file


def _read(folder: Path, name: str) -> str:
    try:
        return (folder / name).read_text(encoding="utf-8")
    except OSError as error:
        raise _fault(folder, str(error)) from error


def _fault(folder: Path, what: str) -> FolderError:
    return FolderError(
        f"{folder} is not Tiny ImageNet as it is unpacked: {what}. Name the folder "
        "tiny-imagenet-200, which holds wnids.txt, words.txt, train and val"
    )
