"""Pictures and texts are listed before any work, and what is wrong is named."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from PIL import Image

from elip_plugin.check.texts import read_texts, with_texts
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


def test_texts_are_read_by_the_path_or_the_name_of_a_file(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "texts.tsv"
    table.write_text("filepath\ttitle\nb/2.png\ta two\n3.png\ta three \n")
    items = with_texts(find_items([folder]), table)
    assert [item.caption for item in items] == ["a three", None, "a two"]
    table.write_text("a.jpg\tan a\n\nb/2.png\tb\tc\n")  # without a header
    assert [item.caption for item in with_texts(items, table)] == [None, "an a", "b\tc"]


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("t.csv", "a.jpg,x", "line 1: 'a.jpg,x' is no pair; give lines of \"picture<TAB>text\""),
        ("t.tsv", "", "holds no text"),
        ("t.tsv", "a.jpg\tx\nno pair\n", "line 2: 'no pair' is no pair"),
        ("t.tsv", "a.jpg\t \n", "line 1"),
    ],
)
def test_texts_that_cannot_be_read(name: str, text: str, fault: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=fault):
        read_texts(tmp_path / name)


def test_texts_of_other_pictures_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_texts(tmp_path / "missing.tsv")
    (tmp_path / "bytes.tsv").write_bytes(b"a.jpg\t\xff")
    with pytest.raises(DataError, match="cannot be read"):
        read_texts(tmp_path / "bytes.tsv")
    (tmp_path / "other.tsv").write_text("other.png\ttext\n")
    with pytest.raises(DataError, match="names none of the pictures"):
        with_texts(find_items([folder]), tmp_path / "other.tsv")
