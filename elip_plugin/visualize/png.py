"""A visualization as one picture."""

from __future__ import annotations

import textwrap
from pathlib import Path

from elip_plugin.files import replacing, writable
from elip_plugin.visualize.drawing import WHITE, WIDTH, draw_stage, resize
from elip_plugin.visualize.views import Visualization

GAP, LEFT, HEAD, LINE, LETTER = 14, 190, 36, 15, 7
BLACK, SOFT = (28, 28, 30), (90, 90, 96)


def write_png(shown: Visualization, path: Path) -> None:
    """Draw a visualization."""
    from PIL import Image, ImageDraw, ImageFont

    titles = shown.column_titles
    height = max(round(WIDTH * i.size[1] / i.size[0]) for _, i in shown.pictures)
    words = [[_wrap(stage.describe(), 34) for stage in row.stages] for row in shown.rows]
    lines = max((len(wrapped) for row in words for wrapped in row), default=0)
    full = height + max(2, lines) * LINE + GAP
    title, head = title_of(shown), head_of(shown)
    size = LEFT + len(titles) * (WIDTH + GAP), head + len(shown.rows) * full
    sheet = Image.new("RGB", size, WHITE)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    pen.text((GAP, 8), "\n".join(title), BLACK, font)
    for column, text in enumerate(titles):
        pen.text((LEFT + column * (WIDTH + GAP), head - 20), text, SOFT, font)
    for place, row in enumerate(shown.rows):
        top = head + place * full
        pen.text((GAP, top), "\n".join(_wrap(shown.row_title(row), 26)), BLACK, font)
        image = shown.pictures[row.picture][1]
        sheet.paste(resize(image), (LEFT, top))
        for column, stage in enumerate(row.stages, 1):
            x = LEFT + column * (WIDTH + GAP)
            sheet.paste(draw_stage(shown.grid, image, stage), (x, top))
            pen.text((x, top + height + 3), "\n".join(words[place][column - 1]), SOFT, font)
    with writable(path), replacing(path) as unfinished:
        sheet.save(unfinished, "PNG")


def title_of(shown: Visualization) -> list[str]:
    """Return the lines of the title, which are no wider than the sheet."""
    letters = (LEFT + len(shown.column_titles) * (WIDTH + GAP) - 2 * GAP) // LETTER
    return [*_wrap(shown.label, letters), *_wrap(shown.plan, letters)]


def head_of(shown: Visualization) -> int:
    """Return the pixels above the first row."""
    return len(title_of(shown)) * LINE + HEAD


def _wrap(text: str, letters: int) -> list[str]:
    """Break a text into lines, without what Pillow's own font cannot draw."""
    plain = text.replace("“", '"').replace("”", '"').encode("latin-1", "replace")
    return textwrap.wrap(plain.decode("latin-1"), letters)
