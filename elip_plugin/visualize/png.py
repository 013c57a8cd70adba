"""A visualization as one picture."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from elip_plugin.files import replacing, writable
from elip_plugin.visualize.views import StageView, Visualization

CELL, GAP, LEFT, HEAD, LINE, LETTER = 208, 14, 190, 36, 15, 7
INK, SOFT, PAPER, MERGED = (28, 28, 30), (90, 90, 96), (255, 255, 255), (217, 72, 15)
BORDER = (128, 128, 134)
FADED = 0.86
"""How much of a patch that is no token of its own is paper."""


def write_png(made: Visualization, path: Path) -> None:
    """Draw a visualization."""
    from PIL import Image, ImageDraw, ImageFont

    titles = made.column_titles
    height = max(round(CELL * i.size[1] / i.size[0]) for _, i in made.pictures)
    lines = max((len(_words(stage)) for row in made.rows for stage in row.stages), default=0)
    full = height + max(2, lines) * LINE + GAP
    title, head = title_of(made), head_of(made)
    size = LEFT + len(titles) * (CELL + GAP), head + len(made.rows) * full
    sheet = Image.new("RGB", size, PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    pen.text((GAP, 8), "\n".join(title), INK, font)
    for column, words in enumerate(titles):
        pen.text((LEFT + column * (CELL + GAP), head - 20), words, SOFT, font)
    for place, row in enumerate(made.rows):
        top = head + place * full
        text = "\n".join(textwrap.wrap(_plain(made.row_title(row)), 26))
        pen.text((GAP, top), text, INK, font)
        image = made.pictures[row.picture][1]
        sheet.paste(_scaled(image), (LEFT, top))
        for column, stage in enumerate(row.stages, 1):
            x = LEFT + column * (CELL + GAP)
            sheet.paste(draw_stage(made, image, stage), (x, top))
            pen.text((x, top + height + 3), "\n".join(_words(stage)), SOFT, font)
    with writable(path), replacing(path) as unfinished:
        sheet.save(unfinished, "PNG")


def title_of(made: Visualization) -> list[str]:
    """Return the lines of the title, which are no wider than the sheet."""
    width = LEFT + len(made.column_titles) * (CELL + GAP)
    return [
        line
        for text in (made.label, made.plan)
        for line in textwrap.wrap(_plain(text), (width - 2 * GAP) // LETTER)
    ]


def head_of(made: Visualization) -> int:
    """Return the pixels above the first row."""
    return len(title_of(made)) * LINE + HEAD


def draw_stage(made: Visualization, image: Any, stage: StageView) -> Any:
    """Draw what a stage left of a picture, `CELL` pixels wide.

    Args:
        made: What the stage is of.
        image: The picture as the model sees it (Pillow).
        stage: The stage.

    Returns:
        A picture (Pillow).
    """
    from PIL import ImageDraw

    drawn = _scaled(_drawn(made, image, stage))
    pen, scale = ImageDraw.Draw(drawn), CELL / image.size[0]
    for line in made.borders(image, stage) if stage.groups else ():
        pen.line([scale * value for value in line], BORDER, 1)
    return drawn


def _words(stage: StageView) -> list[str]:
    return textwrap.wrap(_plain(stage.describe()), 34)


def _scaled(image: Any) -> Any:
    from PIL.Image import Resampling

    ratio = CELL / image.size[0]
    return image.resize((CELL, round(ratio * image.size[1])), Resampling.NEAREST)


def _drawn(made: Visualization, image: Any, stage: StageView) -> Any:
    """Draw a pixel for each patch, and lay them over the picture."""
    from PIL import Image

    rows, columns = made.grid
    shades = {patch: (*PAPER, FADED) for patch in (*stage.earlier, *stage.gone)}
    shades |= {patch: (*MERGED, opacity) for patch, opacity in stage.opacities.items()}
    shades |= {patch: (*mean, 1.0) for group, mean in made.fills(image, stage) for patch in group}
    overlay = Image.new("RGBA", (columns, rows))
    for patch, (red, green, blue, share) in shades.items():
        place = patch % columns, patch // columns
        overlay.putpixel(place, (red, green, blue, round(255 * share)))
    over = overlay.resize(image.size, Image.Resampling.NEAREST)
    return Image.alpha_composite(image.convert("RGBA"), over).convert("RGB")


def _plain(text: str) -> str:
    """Replace what Pillow's own font cannot draw."""
    return text.replace("“", '"').replace("”", '"').encode("latin-1", "replace").decode("latin-1")
