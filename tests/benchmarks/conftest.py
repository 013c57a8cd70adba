"""Drawn emojis, and made photographs, for tests of data sets and studies of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.data import emojis, files
from benchmarks.data.emojis import Emojis

NAMES = [f"thing {letter}" for letter in "abcdefghijklmnopqr"]
MAGENTA = (255, 0, 255)  # of no ground, whole or darkened


@pytest.fixture(scope="session")
def drawn() -> Emojis:
    """18 names in five styles: a magenta block of another place and size each."""
    pictures, alpha, captions, styles = [], [], [], []
    for i, name in enumerate(NAMES):
        for style in range(5):
            picture = np.full((64, 64, 3), 255, np.uint8)
            share = np.zeros((64, 64), np.uint8)
            block = (slice(8, 32 + i), slice(8 * style, 40 + i))
            picture[block], share[block] = MAGENTA, 255
            pictures.append(picture)
            alpha.append(share)
            captions.append(name)
            styles.append(f"style {style}")
    return Emojis(np.stack(pictures), np.stack(alpha), captions, styles)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, drawn: Emojis) -> Path:
    """The drawn emojis in a folder as `write_emojis` writes it."""
    out = tmp_path_factory.mktemp("emojis")
    rows = [{"caption": c, "style": s} for c, s in zip(drawn.captions, drawn.styles)]
    arrays = {"pictures": drawn.pictures, "alpha": drawn.alpha}
    contents = {"train.npz": files.pack_arrays(arrays), "train.json": files.pack_json(rows)}
    files.write_set(out, emojis.MANIFEST, contents, {})
    return out


CLASSES, EACH, VALIDATION = 10, 12, 2
BOX = (8, 8, 39, 39)
"""Of the object in each photograph: left, top, right, bottom, all included."""


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes in Tiny ImageNet's layout; a photograph's level of red says which it is."""
    out = tmp_path_factory.mktemp("tiny-imagenet-200")
    ids = [f"n{place:08}" for place in range(CLASSES)]
    (out / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in reversed(ids)))
    words = [f"{wnid}\tthing {place}, other name" for place, wnid in enumerate(ids)]
    (out / "words.txt").write_text("\n".join(["n99999999\tno class of it", *words]) + "\n")
    random = np.random.default_rng(0)
    box = "\t".join(map(str, BOX))

    def save(path: Path, red: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = random.integers(0, 40, (64, 64, 3), np.uint8)
        picture[..., 0] = red
        Image.fromarray(picture).save(path, format="JPEG")

    rows = []
    for place, wnid in enumerate(ids):
        for number in range(EACH):
            save(out / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", 20 * place + number)
        boxes = [f"{wnid}_{number}.JPEG\t{box}\n" for number in reversed(range(EACH))]
        (out / "train" / wnid / f"{wnid}_boxes.txt").write_text("".join(boxes))
        for number in range(VALIDATION):
            name = f"val_{place + CLASSES * number}.JPEG"
            save(out / "val" / "images" / name, 20 * place)
            rows.append(f"{name}\t{wnid}\t{box}")
    Image.new("L", (64, 64), 200).save(out / "train" / ids[1] / "images" / f"{ids[1]}_0.JPEG")
    (out / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")
    return out
