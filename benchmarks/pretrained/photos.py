"""Flickr8k in memory: photographs with five captions each, as a folder and a file give them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 224
PARTS = {"choosing": 1000, "test": 1000}
"""Photographs that plans are chosen on, and those that no choice has seen; the rest is training."""


@dataclass(frozen=True)
class Photos:
    """Photographs and their captions.

    Attributes:
        pixels: Bytes [N, side, side, 3].
        captions: Five texts for each.
        parts: Indices by the name of their part.
    """

    pixels: np.ndarray
    captions: list[list[str]]
    parts: dict[str, np.ndarray]


def read(folder: Path, captions: Path, cache: Path) -> Photos:
    """Read photographs, decoded once.

    Args:
        folder: Photographs as .jpg files.
        captions: CSV of file name and text, with a header.
        cache: Folder that keeps the pixels.

    Returns:
        The photographs that have five captions, in the order of their names.
    """
    texts: dict[str, list[str]] = {}
    with captions.open(encoding="utf-8") as file:
        for name, text in list(csv.reader(file))[1:]:
            texts.setdefault(name, []).append(text)
    names = [n for n in sorted(texts) if len(texts[n]) >= 5 and (folder / n).exists()]
    if not names:
        raise ValueError(f"no photograph of {folder} has five captions in {captions}")
    kept = cache / f"pixels-{len(names)}.npy"
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(".part.npy")
        shape = (len(names), SIDE, SIDE, 3)
        pixels = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
        for place, name in enumerate(names):
            pixels[place] = _square(Image.open(folder / name))
        pixels.flush()
        partial.rename(kept)
    order = np.random.RandomState(0).permutation(len(names))
    parts, start = {}, 0
    for part, count in PARTS.items():
        parts[part] = np.sort(order[start : start + count])
        start += count
    parts["training"] = np.sort(order[start:])
    return Photos(np.load(kept, mmap_mode="r"), [texts[n][:5] for n in names], parts)


def _square(image: Image.Image) -> np.ndarray:
    """Return the middle of a picture at the side."""
    image = image.convert("RGB")
    if image.size != (SIDE, SIDE):
        scale = SIDE / min(image.size)
        width, height = (max(SIDE, round(edge * scale)) for edge in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - SIDE) // 2, (height - SIDE) // 2
        image = image.crop((left, top, left + SIDE, top + SIDE))
    return np.asarray(image)
