"""Pictures and texts are listed before any work, and what is wrong is named."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from PIL import Image

from elip_plugin.errors import DataError
from elip_plugin.pictures import find_items


def save(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 10), (shade, 0, 0)).save(path)
    return path


def pack(path: Path, files: dict[str, Path]) -> Path:
    with tarfile.open(path, "w") as shard:
        for name, file in files.items():
            shard.add(file, name)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures in folders, one with a text; a shard with one picture and its text."""
    made = tmp_path / "pictures"
    save(made / "b" / "2.png", 40)
    save(made / "a.JPG".lower(), 80)
    save(made / ".hidden" / "no.png")
    (made / "b" / "2.txt").write_text("two\n")
    text = tmp_path / "three.txt"
    text.write_text("three")
    inside = save(tmp_path / "inside.png", 200)
    pack(made / "0.tar", {"x/3.png": inside, "x/3.txt": text, "x/3.json": text})
    return made


def test_pictures_of_folders_and_shards_are_found_with_their_texts(folder: Path) -> None:
    items = find_items([folder, folder / "b"])  # what is given twice is there once
    assert [(item.name, item.group, item.caption) for item in items] == [
        ("0.tar/x/3.png", "0.tar/x", "three"),
        ("a.jpg", "", None),
        ("b/2.png", "b", "two"),
    ]
    assert [item.read().getpixel((0, 0))[0] // 10 for item in items] == [20, 8, 4]
    assert len({item.key for item in items}) == 3


def test_a_picture_that_changes_has_another_key(folder: Path) -> None:
    (before,) = find_items([folder / "a.jpg"])
    assert find_items([folder / "a.jpg"])[0].key == before.key
    save(folder / "a.jpg", 90)
    assert find_items([folder / "a.jpg"])[0].key != before.key


def test_what_holds_no_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no picture is in"):
        find_items([tmp_path])
    with pytest.raises(DataError, match="does not exist"):
        find_items([tmp_path / "nothing"])
    (tmp_path / "broken.tar").write_bytes(b"no shard" * 200)
    with pytest.raises(DataError, match=r"broken\.tar is not a webdataset shard"):
        find_items([tmp_path])
