"""A look as one self-contained HTML file."""

from __future__ import annotations

import base64
import io
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from elip_plugin.visualize.look import Look, Row, StageView
from elip_plugin.visualize.words import column_titles, row_title, stage_words


def to_html(look: Look) -> str:
    """Write a look as a page that needs nothing else.

    Args:
        look: What to draw.

    Returns:
        The page; the reader's browser decides between light and dark.
    """
    page = Template(
        files("elip_plugin.visualize").joinpath("page.html").read_text(encoding="utf-8")
    )
    pictures = "".join(_definition(i, image) for i, (_, image) in enumerate(look.pictures))
    heads = "".join(f'<th scope="col">{escape(title)}</th>' for title in column_titles(look))
    rows = "".join(_row(look, row) for row in look.rows)
    return page.substitute(
        model=escape(look.model),
        weights=escape(look.weights),
        plan=escape(look.plan),
        pictures=pictures,
        heads=heads,
        rows=rows,
    )


def _definition(place: int, image: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    width, height = image.size
    return (
        f'<image id="picture-{place}" width="{width}" height="{height}" '
        f'href="data:image/png;base64,{data}"/>'
    )


def _row(look: Look, row: Row) -> str:
    name, image = look.pictures[row.picture]
    whole = _figure(row.picture, image.size, "", f"{name}, all {look.patches} patches")
    cells = [f"<td>{whole}</td>"]
    for stage in row.stages:
        words = stage_words(stage, look.patches)
        drawn = _figure(row.picture, image.size, _overlay(look, image.size, stage), words)
        cells.append(f"<td>{drawn}<p>{escape(words)}</p></td>")
    title = escape(row_title(look, row))
    return f'<tr><th scope="row">{title}</th>{"".join(cells)}</tr>\n'


def _figure(place: int, size: tuple[int, int], overlay: str, words: str) -> str:
    return (
        f'<svg viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{escape(words)}">'
        f'<use href="#picture-{place}"/>{overlay}</svg>'
    )


def _overlay(look: Look, size: tuple[int, int], stage: StageView) -> str:
    faded = "".join(_square(look, size, patch) for patch in (*stage.earlier, *stage.gone))
    heaviest = max(stage.merged.values(), default=1.0)
    merged = "".join(
        f'<path d="{_square(look, size, patch)}" opacity="{0.35 + 0.55 * weight / heaviest:.2f}"/>'
        for patch, weight in stage.merged.items()
    )
    return f'<path class="faded" d="{faded}"/><g class="merged">{merged}</g>'


def _square(look: Look, size: tuple[int, int], patch: int) -> str:
    rows, columns = look.grid
    width, height = size[0] / columns, size[1] / rows
    x, y = patch % columns * width, patch // columns * height
    return f"M{x:g} {y:g}h{width:g}v{height:g}h-{width:g}z"
