"""Tables of the studies in Markdown, and the pages that they stand in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.stats import Difference


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Write a table in Markdown.

    Args:
        header: Names of the columns.
        rows: Their cells.

    Returns:
        The table.
    """
    header = tuple(header)
    texts = [header, tuple("---" for _ in header), *rows]
    return "".join(f"| {' | '.join(text)} |\n" for text in texts)


def signed(found: Difference) -> str:
    """Write a difference of shares in points with its 95% interval, such as "-1.2 ± 0.9"."""
    text = f"{100 * found.mean:+.1f}"
    return text if math.isnan(found.half) else f"{text} ± {100 * found.half:.1f}"


def fill(text: str, made: Mapping[str, str]) -> str:
    """Replace the tables of a page, between their marks.

    Args:
        text: The page.
        made: Tables by the name of their mark.

    Returns:
        The page.
    """
    for name, table in made.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
        if begin in text:
            head, rest = text.split(begin)
            text = f"{head}{begin}\n{table}\n{end}{rest.split(end)[1]}"
    return text
