"""Write image-text pairs as webdataset shards, PNG files and LAVIS lists."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path


@dataclass(frozen=True)
class Sample:
    """One image-text pair: a file-name-safe key, the PNG bytes and the caption."""

    key: str
    png: bytes
    caption: str


def write_split(folder: Path, name: str, samples: Iterable[Sample], per_shard: int = 500) -> int:
    """Write one split as `name/NNNNN.tar`, `images/KEY.png` and `name.json`.

    Args:
        folder: Root folder of the data set; it exists.
        name: Name of the split.
        samples: The pairs, in the order they are written.
        per_shard: Most pairs in one tar file.

    Returns:
        The number of shards written.
    """
    (folder / name).mkdir()
    (folder / "images").mkdir(exist_ok=True)
    rows: list[dict[str, str]] = []
    shards = 0
    rest = iter(samples)
    while batch := list(islice(rest, per_shard)):
        _write_tar(folder / name / f"{shards:05d}.tar", batch)
        for sample in batch:
            image = f"images/{sample.key}.png"
            (folder / image).write_bytes(sample.png)
            rows.append({"image": image, "caption": sample.caption})
        shards += 1
    write_json(folder / f"{name}.json", rows)
    return shards


def write_json(path: Path, value: object) -> None:
    """Write `value` as UTF-8 JSON, the same bytes on every system.

    Args:
        path: File to write.
        value: What to write.
    """
    path.write_bytes((json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode())


def _write_tar(path: Path, samples: Iterable[Sample]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            for suffix, content in (("png", sample.png), ("txt", sample.caption.encode())):
                # A fresh TarInfo has owner 0, mode 0644 and time 0: the same bytes every run.
                info = tarfile.TarInfo(f"{sample.key}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
