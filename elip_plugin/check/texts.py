"""Read the texts of pictures from a TSV file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from elip_plugin.errors import DataError
from elip_plugin.pictures import SUFFIXES, Item

FORM = (
    'give lines of "picture<TAB>text"; pictures are named by their path below the folder, or by '
    "the name of their file"
)


def with_texts(items: Sequence[Item], path: Path) -> list[Item]:
    """Give pictures the texts of a file; those that it does not name have none."""
    texts = read_texts(path)
    # A file's name says which picture is meant where only one has it.
    paths: dict[str, list[str]] = {}
    for item in items:
        paths.setdefault(item.name.rpartition("/")[2], []).append(item.name)
    names = {same[0]: name for name, same in paths.items() if len(same) == 1}
    captioned = [
        replace(item, caption=texts.get(item.name) or texts.get(names.get(item.name, "")))
        for item in items
    ]
    if not any(item.caption for item in captioned):
        raise DataError(
            f"{path} names none of the pictures: it has {next(iter(texts))!r}, the pictures have "
            f"{items[0].name!r}; {FORM}"
        )
    return captioned


def read_texts(path: Path) -> dict[str, str]:
    """Read texts, one or more, by the names of pictures; an error names the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"texts {str(path)!r} cannot be read ({error}): {FORM}") from error
    texts = {}
    for number, line in enumerate(lines, 1):
        name, tab, text = line.partition("\t")
        header = number == 1 and tab and not name.lower().endswith(SUFFIXES)
        if header or not line.strip():  # such as OpenCLIP's "filepath  title"
            continue
        if not (name and text.strip()):
            raise DataError(f"{path}, line {number}: {line[:80]!r} is no pair; {FORM}")
        texts[name] = text.strip()
    if not texts:
        raise DataError(f"texts {str(path)!r} holds no text: {FORM}")
    return texts
