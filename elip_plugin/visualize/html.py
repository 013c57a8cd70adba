"""A visualization as one self-contained HTML file."""

from __future__ import annotations

import base64
import io
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from elip_plugin.visualize.drawing import draw_stage, resize
from elip_plugin.visualize.views import Row, Visualization


def to_html(shown: Visualization) -> str:
    """Write a visualization as a page that needs nothing else."""
    page = files("elip_plugin.visualize").joinpath("page.html").read_text(encoding="utf-8")
    heads = "".join(f'<th scope="col">{escape(title)}</th>' for title in shown.column_titles)
    return Template(page).substitute(
        label=escape(shown.label),
        plan=escape(shown.plan),
        heads=heads,
        rows="".join(_row(shown, row) for row in shown.rows),
    )


def image_tag(image: Any, words: str, format: str = "PNG", attributes: str = "") -> str:
    """Write a Pillow image as an `<img>` that holds its data; `words` describe it."""
    buffer = io.BytesIO()
    image.save(buffer, format)
    data = f"data:image/{format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return f'<img{attributes} alt="{escape(words)}" src="{data}">'


def _row(shown: Visualization, row: Row) -> str:
    name, image = shown.pictures[row.picture]
    patches = shown.grid[0] * shown.grid[1]
    cells = [f"<td>{image_tag(resize(image), f'{name}, all {patches} patches')}</td>"]
    for stage in row.stages:
        words = stage.describe()
        drawn = image_tag(draw_stage(shown.grid, image, stage), words)
        cells.append(f"<td>{drawn}<p>{escape(words)}</p></td>")
    title = escape(shown.row_title(row))
    return f'<tr><th scope="row">{title}</th>{"".join(cells)}</tr>\n'
