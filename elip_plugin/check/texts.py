"""Read the texts of pictures from a TSV or JSONL file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from elip_plugin.errors import DataError
from elip_plugin.pictures import SUFFIXES, Item

FORMS = (
    'give lines of "picture<TAB>text" (.tsv), or of {"image": ..., "text": ...} (.jsonl); '
    "pictures are named by their path below the folder, or by the name of their file"
)


def with_texts(items: Sequence[Item], path: Path) -> list[Item]:
    """Give pictures the texts of a file, in place of those that lie beside them.

    Args:
        items: The pictures.
        path: The file. Pictures that it does not name have no text.

    Returns:
        The pictures, in the same order.

    Raises:
        DataError: If the file cannot be read, or names none of the pictures.
    """
    texts = read_texts(path)
    # A file's name says which picture is meant where only one has it.
    short: dict[str, list[str]] = {}
    for item in items:
        short.setdefault(item.name.rpartition("/")[2], []).append(item.name)
    unique = {names[0]: name for name, names in short.items() if len(names) == 1}
    made = [
        replace(item, caption=texts.get(item.name) or texts.get(unique.get(item.name, "")))
        for item in items
    ]
    if not any(item.caption for item in made):
        raise DataError(
            f"{path} names none of the pictures: it has {next(iter(texts))!r}, the pictures have "
            f"{items[0].name!r}; {FORMS}"
        )
    return made


def read_texts(path: Path) -> dict[str, str]:
    """Read texts by the names of pictures.

    Args:
        path: A `.tsv` or `.jsonl` file.

    Returns:
        The texts; at least one.

    Raises:
        DataError: If it cannot be read: names the line.
    """
    if path.suffix.lower() not in (".tsv", ".jsonl"):
        raise DataError(f"texts {str(path)!r} must end in .tsv or .jsonl: {FORMS}")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"texts {str(path)!r} cannot be read ({error}): {FORMS}") from error
    pairs = _of_json(path, lines) if path.suffix.lower() == ".jsonl" else _of_table(path, lines)
    texts = dict(pairs)
    for name, text in texts.items():
        if not _is_unicode(name + text):
            raise DataError(
                f"texts {str(path)!r}: the text of {name!a} has half a character (a lone surrogate "
                "such as \\ud800): write it anew"
            )
    if not texts:
        raise DataError(f"texts {str(path)!r} holds no text: {FORMS}")
    return texts


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _of_table(path: Path, lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(lines, 1):
        name, tab, text = line.partition("\t")
        if number == 1 and tab and not name.lower().endswith(SUFFIXES):
            continue  # a head, such as OpenCLIP's "filepath  title"
        if line.strip():
            if not (name and text.strip()):
                raise DataError(f"{path}, line {number}: {line[:80]!r} is no pair; {FORMS}")
            yield name, text.strip()


def _of_json(path: Path, lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, text = row["image"], row["text"] if "text" in row else row["caption"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: {line[:80]!r} is no pair; {FORMS}") from error
        if not (isinstance(name, str) and isinstance(text, str) and text.strip()):
            raise DataError(f"{path}, line {number}: {line[:80]!r} is no pair; {FORMS}")
        yield name, text.strip()
