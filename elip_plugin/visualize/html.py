"""A visualization as one self-contained HTML file."""

from __future__ import annotations

import base64
import io
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from elip_plugin.visualize.views import Row, StageView, Visualization


def to_html(made: Visualization) -> str:
    """Write a visualization as a page that needs nothing else."""
    page = files("elip_plugin.visualize").joinpath("page.html").read_text(encoding="utf-8")
    pictures = "".join(_definition(i, image) for i, (_, image) in enumerate(made.pictures))
    heads = "".join(f'<th scope="col">{escape(title)}</th>' for title in made.column_titles)
    return Template(page).substitute(
        label=escape(made.label),
        plan=escape(made.plan),
        pictures=pictures,
        heads=heads,
        rows="".join(_row(made, row) for row in made.rows),
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


def _row(made: Visualization, row: Row) -> str:
    name, image = made.pictures[row.picture]
    patches = made.grid[0] * made.grid[1]
    whole = _figure(row.picture, image.size, "", f"{name}, all {patches} patches")
    cells = [f"<td>{whole}</td>"]
    for stage in row.stages:
        words = stage.describe()
        drawn = _figure(row.picture, image.size, _overlay(made, image, stage), words)
        cells.append(f"<td>{drawn}<p>{escape(words)}</p></td>")
    title = escape(made.row_title(row))
    return f'<tr><th scope="row">{title}</th>{"".join(cells)}</tr>\n'


def _figure(place: int, size: tuple[int, int], overlay: str, words: str) -> str:
    return (
        f'<svg viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{escape(words)}">'
        f'<use href="#picture-{place}"/>{overlay}</svg>'
    )


def _overlay(made: Visualization, image: Any, stage: StageView) -> str:
    def square(patch: int) -> str:
        x, y, width, height = made.box(image, patch)
        return f"M{x:g} {y:g}h{width:g}v{height:g}h-{width:g}z"

    faded = "".join(square(patch) for patch in (*stage.earlier, *stage.gone))
    merged = "".join(
        f'<path d="{square(patch)}" opacity="{opacity:.2f}"/>'
        for patch, opacity in stage.opacities.items()
    )
    made_groups = "".join(
        f'<path d="{"".join(map(square, group))}" fill="rgb{color}"/>'
        for group, color in made.fills(image, stage)
    )
    if stage.groups:
        lines = made.borders(image, stage)
        path = "".join(f"M{x:g} {y:g}L{to_x:g} {to_y:g}" for x, y, to_x, to_y in lines)
        made_groups += f'<path class="borders" d="{path}"/>'
    return f'<path class="faded" d="{faded}"/><g class="merged">{merged}</g>{made_groups}'
