"""The grid of patches of OpenCLIP's vision towers."""

from __future__ import annotations

from typing import Any


def grid_of(visual: Any) -> tuple[int, int]:
    """Return the rows and columns of patches of a vision tower, at its nominal size."""
    trunk = getattr(visual, "trunk", None)
    if trunk is None:
        rows, columns = visual.grid_size
    else:
        rows, columns = trunk.patch_embed.grid_size
    return rows, columns
