"""Pictures that lie in no file, and those of files with what they show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elip_plugin.pictures import find_items, read_picture


@dataclass
class Picture:
    """Stands for an `Item`."""

    name: str
    image: Any
    caption: str | None = None

    def read(self) -> Any:
        return self.image


def find_pictures(paths: Sequence[Path], most: int = 9) -> list[Picture]:
    """Read the first pictures of some paths, as the commands do."""
    items = find_items(paths)[:most]
    return [Picture(item.name, read_picture(item), item.caption) for item in items]
