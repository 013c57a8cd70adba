"""Pairs of an emoji and its name, in up to ten styles, with whole names held out."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.data import files, icons, names, package
from benchmarks.data.files import DataSetError

STYLES = (
    "openmoji",
    "twemoji",
    "noto",
    "noto-v1",
    "fluent-emoji-flat",
    "fluent-emoji",
    "emojione",
    "emojione-v1",
    "fxemoji",
    "streamline-emojis",
)
MANIFEST = "emojis.json"
FILES = (
    MANIFEST,
    "ATTRIBUTION.txt",
    *(f"{split}.{kind}" for split in files.SPLITS for kind in ("npz", "json")),
)
MIN_SIZE, MAX_SIZE = 8, 512
BLANK = 2.0
"""Standard deviation of a picture's values below which it shows nothing."""


@dataclass(frozen=True)
class Emojis:
    """A split of the emojis, in memory.

    Attributes:
        pictures: The pictures over white [N, size, size, 3].
        alpha: How opaque they are [N, size, size]; 255 is fully.
        captions: Their captions, the words of their names.
        styles: The icon set of each.
    """

    pictures: NDArray[np.uint8]
    alpha: NDArray[np.uint8]
    captions: list[str]
    styles: list[str]

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self.captions)


@dataclass(frozen=True)
class _Drawn:
    """A set whose icons are rendered; `about` is what its file of the cache says."""

    about: dict[str, Any]
    pictures: NDArray[np.uint8]
    alpha: NDArray[np.uint8]


@dataclass(frozen=True)
class _Row:
    """A picture of the data set: which of its set's icons it is."""

    style: str
    number: int
    name: str


def write_emojis(
    out: Path,
    cache: Path,
    *,
    archive: Path | None = None,
    styles: Sequence[str] = STYLES,
    size: int = 64,
    held_out: int = 400,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Render emojis and write both splits; what is there already is not made again.

    Args:
        out: Folder to write to; new, empty, or of an earlier run.
        cache: Folder of the package and of rendered sets, for runs that follow.
        archive: File of the package; None to fetch it by npm.
        styles: Names of icon sets.
        size: Width and height of the pictures in pixels.
        held_out: How many names to hold out.
        seed: Decides which.
        progress: Called with a line about each set.

    Returns:
        The manifest.

    Raises:
        DataSetError: If an argument is out of range, the package cannot be fetched or read, or a
            folder cannot be written to.
    """
    unknown = [style for style in styles if archive is None and style not in STYLES]
    if unknown or not styles or len(set(styles)) < len(styles):
        raise DataSetError(
            f"sets are {list(styles)}, but must be some of {list(STYLES)}, each once."
        )
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise DataSetError(f"size is {size} pixels, but must be {MIN_SIZE} to {MAX_SIZE}.")
    files.check_folder(out, FILES)
    archive = archive or package.fetch(cache)
    settings = {
        "source": f"npm {package.NAME}@{package.VERSION}",
        "source_sha256": files.sha256(archive),
        "renderer": f"resvg-py {_resvg_version()}",
        "sets": list(styles),
        "size": size,
        "held_out_names": held_out,
        "seed": seed,
    }
    try:
        before = files.read_manifest(out, MANIFEST, "emojis")
        if before["settings"] == settings:
            return before
    except (DataSetError, KeyError):
        pass
    drawn = _render_sets(archive, cache, settings, progress)
    rows, counts = _choose_rows(drawn)
    held = names.hold_out(_styles_by_name(rows), held_out, seed)
    parts = {
        "train": [row for row in rows if row.name not in held],
        "held_out": [row for row in rows if row.name in held],
    }
    contents = {"ATTRIBUTION.txt": _attribution(drawn, size).encode()}
    for split, chosen in parts.items():
        arrays = {
            "pictures": np.stack([drawn[row.style].pictures[row.number] for row in chosen]),
            "alpha": np.stack([drawn[row.style].alpha[row.number] for row in chosen]),
        }
        listed = [{"caption": row.name, "style": row.style} for row in chosen]
        contents[f"{split}.npz"] = files.pack_arrays(arrays)
        contents[f"{split}.json"] = files.pack_json(listed)
    for split, chosen in parts.items():
        for style, number in Counter(row.style for row in chosen).items():
            counts[style][split] = number
    about = {
        "settings": settings,
        "names": {split: len({row.name for row in chosen}) for split, chosen in parts.items()},
        "pictures": {split: len(chosen) for split, chosen in parts.items()},
        "sets": {style: {**drawn[style].about["info"], **counts[style]} for style in styles},
        "held_out_names": sorted(held),
    }
    return files.write_set(out, MANIFEST, contents, about)


def read_emojis(folder: Path, split: str) -> Emojis:
    """Read a split, and check that its files are as they were written.

    Args:
        folder: Where `write_emojis` wrote.
        split: "train" or "held_out".

    Returns:
        The split.
    """
    files.check_split(split)
    files.read_manifest(folder, MANIFEST, "emojis")
    arrays = files.read_arrays(folder / f"{split}.npz")
    rows = json.loads((folder / f"{split}.json").read_text(encoding="utf-8"))
    return Emojis(
        arrays["pictures"],
        arrays["alpha"],
        [row["caption"] for row in rows],
        [row["style"] for row in rows],
    )


def _render_sets(
    archive: Path, cache: Path, settings: dict[str, Any], progress: Callable[[str], None]
) -> dict[str, _Drawn]:
    """Render all sets; each is kept in the cache as soon as it is done."""
    key = hashlib.sha256(
        f"{settings['source_sha256']} {settings['renderer']} {settings['size']}".encode()
    ).hexdigest()[:16]
    stems = {style: cache / f"{style}-{settings['size']}-{key}" for style in settings["sets"]}
    drawn = {style: found for style, stem in stems.items() if (found := _read_drawn(stem))}
    missing = [style for style in stems if style not in drawn]
    for style, content in package.read_sets(archive, missing):
        drawn[style] = _draw(icons.parse(style, content), settings["size"])
        arrays = {"pictures": drawn[style].pictures, "alpha": drawn[style].alpha}
        packed = files.pack_arrays(arrays)
        drawn[style].about["sha256"] = hashlib.sha256(packed).hexdigest()
        files.write(stems[style].with_suffix(".npz"), packed)
        files.write(stems[style].with_suffix(".json"), files.pack_json(drawn[style].about))
        progress(f"{style}: {len(drawn[style].pictures)} icons rendered")
    return {style: drawn[style] for style in stems}  # the order decides which duplicates stay


def _read_drawn(stem: Path) -> _Drawn | None:
    """Read a set from the cache, unless it is missing or damaged."""
    try:
        about = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
        if files.sha256(stem.with_suffix(".npz")) != about["sha256"]:
            return None
    except (OSError, ValueError, KeyError):
        return None
    return _Drawn(about, **files.read_arrays(stem.with_suffix(".npz")))


def _draw(icon_set: icons.IconSet, size: int) -> _Drawn:
    done, failed = {}, []
    for name, svg in icon_set.icons.items():
        try:
            done[name] = icons.render(svg, size)
        except ValueError:
            failed.append(name)
    if not done:
        raise DataSetError(
            f"none of the {len(failed)} icons of {icon_set.style} can be rendered: leave it out "
            "by --sets, or install another version of resvg-py."
        )
    about = {
        "info": icon_set.info,
        "icons": list(done),
        "aliases": icon_set.aliases,
        "skin_tones": icon_set.skin_tones,
        "withdrawn": icon_set.withdrawn,
        "not_rendered": failed,
    }
    pictures, alpha = (np.stack(arrays) for arrays in zip(*done.values()))
    return _Drawn(about, pictures, alpha)


def _choose_rows(drawn: dict[str, _Drawn]) -> tuple[list[_Row], dict[str, dict[str, int]]]:
    """Return the pictures that are not blank, named, and not the same as an earlier one."""
    unified = names.unify_names(
        {style: found.about["icons"] for style, found in drawn.items()},
        {style: found.about["aliases"] for style, found in drawn.items()},
    )
    seen: set[bytes] = set()
    rows, counts = [], {}
    for style, found in drawn.items():
        count: Counter[str] = Counter()
        for number, icon in enumerate(found.about["icons"]):
            picture = found.pictures[number]
            digest = hashlib.sha256(picture.tobytes()).digest()
            if picture.std() < BLANK:
                count["blank"] += 1
            elif (style, icon) not in unified:
                count["without_words"] += 1
            elif digest in seen:
                count["duplicates"] += 1
            else:
                seen.add(digest)
                rows.append(_Row(style, number, unified[style, icon]))
                count["pictures"] += 1
        counts[style] = {
            "pictures": count["pictures"],
            "train": 0,
            "held_out": 0,
            **{key: found.about[key] for key in ("skin_tones", "withdrawn")},
            "not_rendered": len(found.about["not_rendered"]),
            **{key: count[key] for key in ("blank", "without_words", "duplicates")},
        }
    return rows, counts


def _styles_by_name(rows: Iterable[_Row]) -> dict[str, set[str]]:
    styles: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        styles[row.name].add(row.style)
    return styles


def _resvg_version() -> str:
    try:
        return metadata.version("resvg-py")
    except metadata.PackageNotFoundError:
        raise DataSetError(
            "resvg-py renders the emojis, but is not installed: pip install resvg-py."
        ) from None


def _attribution(drawn: dict[str, _Drawn], size: int) -> str:
    lines = [
        f"Emojis from npm {package.NAME}@{package.VERSION}, rendered from SVG to {size} x {size} "
        "pixels; captions are made from their names.",
        "",
    ]
    for found in drawn.values():
        info = found.about["info"]
        lines.append(f"{info['title']}, by {info['author']}: {info['license']}, {info['url']}")
    return "\n".join(lines) + "\n"
