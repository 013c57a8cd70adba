"""The grid of patches of OpenCLIP's vision towers."""

from __future__ import annotations

from typing import Any


def grid_of(visual: Any) -> tuple[int, int]:
    """Return the rows and columns of patches of a vision tower, at its nominal size."""
    trunk = getattr(visual, "trunk", None)
    if trunk is None:
        rows, columns = visual.grid_size
    elif hasattr(trunk, "patch_embed"):
        rows, columns = trunk.patch_embed.grid_size
    else:  # a NaFlexVit, which takes any; nominal are those of a square image
        sides = zip(visual.image_size, trunk.get_patch_size(), strict=True)
        rows, columns = (side // size for side, size in sides)
    return rows, columns
