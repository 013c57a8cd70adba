"""Write and read data sets of scenes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.data import files
from benchmarks.data.emojis import MANIFEST as EMOJIS
from benchmarks.data.emojis import read_emojis
from benchmarks.data.files import DataSetError
from benchmarks.data.scenes import Scene, SceneMaker

MANIFEST = "scenes.json"
FILES = (MANIFEST, *(f"{split}.{kind}" for split in files.SPLITS for kind in ("npz", "json")))


@dataclass(frozen=True)
class Scenes:
    """A split of scenes, in memory.

    Attributes:
        pictures: The pictures [N, size, size, 3].
        boxes: What each object covers [N, objects, 4], as in `Thing.box`; object i is in cell i
            of the grid, counted row by row.
        rows: For each scene its "caption", "mentions", "questions" and "objects", as in `Scene`.
        answers: All answers to each kind of question.
    """

    pictures: NDArray[np.uint8]
    boxes: NDArray[np.int16]
    rows: list[dict[str, Any]]
    answers: dict[str, list[str]]

    def __len__(self) -> int:
        """Count the scenes."""
        return len(self.rows)


class Maker(Protocol):
    """Makes scenes.

    Attributes:
        names: What occurs in them.
        size: Side of a picture in pixels.
        answers: All answers to each kind of question.
    """

    names: list[str]
    size: int
    answers: dict[str, list[str]]

    def make(self, split: str, number: int) -> Scene:
        """Make the scene of a split and a number; always the same."""


def write_scenes(
    out: Path,
    emojis: Path,
    objects: int,
    *,
    names: int = 60,
    train: int = 20_000,
    held_out: int = 2_000,
    seed: int = 0,
    size: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Write both splits of scenes; what is there already is not made again.

    Args:
        out: Folder to write to; new, empty, or of an earlier run.
        emojis: Folder that `write_emojis` wrote; its train split is drawn.
        objects: Objects per scene: 4, 9 or 16.
        names: How many names occur in the scenes.
        train: Scenes to train on.
        held_out: Scenes to score on: other arrangements of the same emojis.
        seed: Decides which names, and the scenes.
        size: Side of a picture in pixels; None for that of `SIZES`.
        progress: Called with a line about each split.

    Returns:
        The manifest.

    Raises:
        DataSetError: If an argument is out of range or a folder cannot be used.
    """
    drawn = read_emojis(emojis, "train")
    maker = SceneMaker(drawn, objects, names, seed, size)
    settings = {
        "emojis_sha256": files.sha256(emojis / EMOJIS),
        "objects": objects,
        "names": names,
        "scenes": {"train": train, "held_out": held_out},
        "seed": seed,
        "size": maker.size,
    }
    return write_made(out, maker, settings, progress=progress)


def write_made(
    out: Path,
    maker: Maker,
    settings: Mapping[str, Any],
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Write what a maker makes; see `write_scenes`.

    Args:
        out: Folder to write to; new, empty, or of an earlier run.
        maker: Makes the scenes.
        settings: What decides the scenes; "scenes" has the number of each split.
        progress: Called with a line about each split.

    Returns:
        The manifest.

    Raises:
        DataSetError: If a number is out of range or the folder cannot be used.
    """
    counts = settings["scenes"]
    if min(counts.values()) < 1:
        train, held_out = counts.values()
        raise DataSetError(
            f"{train} and {held_out} scenes are asked for, but each must be 1 or more."
        )
    files.check_folder(out, FILES)
    try:
        before = files.read_manifest(out, MANIFEST, "scenes")
        if before["settings"] == settings:
            return before
    except (DataSetError, KeyError):
        pass
    contents = {}
    for split, count in counts.items():
        made = [maker.make(split, number) for number in range(count)]
        arrays: dict[str, NDArray[Any]] = {
            "pictures": np.stack([scene.picture for scene in made]),
            "boxes": np.array([[thing.box for thing in scene.things] for scene in made], np.int16),
        }
        contents[f"{split}.npz"] = files.pack_arrays(arrays)
        contents[f"{split}.json"] = files.pack_json([_row(scene) for scene in made])
        progress(f"{split}: {count} scenes")
    about = {"settings": dict(settings), "names": maker.names, "answers": maker.answers}
    return files.write_set(out, MANIFEST, contents, about)


def read_scenes(folder: Path, split: str) -> Scenes:
    """Read a split, and check that its files are as they were written.

    Args:
        folder: Where `write_scenes` wrote.
        split: "train" or "held_out".

    Returns:
        The split.
    """
    files.check_split(split)
    about = files.read_manifest(folder, MANIFEST, "scenes")
    arrays = files.read_arrays(folder / f"{split}.npz")
    rows = json.loads((folder / f"{split}.json").read_text(encoding="utf-8"))
    return Scenes(arrays["pictures"], arrays["boxes"], rows, about["answers"])


def _row(scene: Scene) -> dict[str, Any]:
    return {
        "caption": scene.caption,
        "mentions": scene.mentions,
        "questions": [asdict(question) for question in scene.questions],
        "objects": [[thing.name, thing.texture, thing.colour] for thing in scene.things],
    }
