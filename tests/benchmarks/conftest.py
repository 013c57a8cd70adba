"""Drawn emojis, for tests of data sets that are made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

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
