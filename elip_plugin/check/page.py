"""A check as an HTML page: tables, and the worst pictures with their neighbors."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from elip_plugin.check.neighbors import nearest_in, similarities
from elip_plugin.check.study import Result
from elip_plugin.check.tables import (
    Table,
    describe_plan,
    folders_table,
    measures_table,
    trials_table,
    verdict,
)
from elip_plugin.errors import ElipError
from elip_plugin.files import write_text
from elip_plugin.hosts.base import HostModel
from elip_plugin.pictures import Item
from elip_plugin.visualize.html import image_tag, to_html
from elip_plugin.visualize.stages import visualize

SIDE = 96
"""Pixels of a picture's longer side."""

NEIGHBORS, DRAWN = 5, 12
"""Neighbors beside each picture; pictures whose patches are drawn."""


def write_page(result: Result, host_model: HostModel, out: Path) -> None:
    """Write `index.html`, and `patches.html`: what the plan makes of the worst pictures."""
    patches = ""
    pictures = [replace(result.items[i], caption=None) for i in result.worst[:DRAWN]]
    with suppress(ElipError):  # of a reducer that records nothing
        drawn = to_html(visualize(host_model, pictures, []))
        write_text(out / "patches.html", drawn, errors="replace")
        patches = '<a href="patches.html">Which patches are merged or dropped in them.</a>'
    page = files("elip_plugin.check").joinpath("page.html").read_text(encoding="utf-8")
    said = f"<p><strong>{escape(verdict(result))}</strong></p>" if result.bound else ""
    said += _table(trials_table(result)) if result.bound else ""
    said += "".join(f"<p>{escape(note)}</p>" for note in result.notes)
    text = Template(page).substitute(
        model=escape(host_model.name),
        about=escape(f"{describe_plan(result)}."),
        verdict=said,
        measures=_table(measures_table(result)),
        folders=_titled("Folders", folders_table(result)),
        patches=patches,
        worst=_worst(result),
        broken=_titled(
            "Pictures that cannot be read", (("picture", "fault"), list(result.broken.items()))
        ),
    )
    write_text(out / "index.html", text, errors="replace")


def _table(table: Table) -> str:
    heads, rows = table
    head = "".join(f'<th scope="col">{escape(word)}</th>' for word in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(w)}</td>' for w in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _titled(title: str, table: Table) -> str:
    """Write a table under a title; nothing for a table without rows."""
    if not table[1]:
        return ""
    region = f'<div class="scroll" tabindex="0" role="region" aria-label="{title}">'
    return f"<h2>{title}</h2>{region}{_table(table)}</div>"


def _worst(result: Result) -> str:
    most, lines = min(NEIGHBORS, len(result.items) - 1), []
    for i in result.worst:
        row = slice(i, i + 1)
        before, after = (
            nearest_in(similarities(features, features, row), most)[0]
            for features in (result.full, result.pruned)
        )
        kept = {*nearest_in(similarities(result.full, result.full, row), result.k)[0].tolist()}
        cells = [
            "".join(_image(result.items[j], new=new and j not in kept) for j in side.tolist())
            for side, new in ((before, False), (after, True))
        ]
        words = f"{result.overlap[i]:.0%} stay, cosine {result.values['cosine'][i]:.3f}"
        item = result.items[i]
        lines.append(
            f'<tr><th scope="row">{escape(item.name)}<br><span class="soft">{words}</span></th>'
            f"<td>{_image(item)}</td>"
            + "".join(f'<td class="row">{cell}</td>' for cell in cells)
            + "</tr>\n"
        )
    return "".join(lines)


def _image(item: Item, new: bool = False) -> str:
    image = item.read()
    image.thumbnail((SIDE, SIDE))
    kind = ' class="new"' if new else ""
    return image_tag(image, item.name, "JPEG", f'{kind} title="{escape(item.name)}"')
