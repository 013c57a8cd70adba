"""A look as one picture."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from elip_plugin.visualize.look import Look, StageView
from elip_plugin.visualize.words import column_titles, row_title, stage_words

CELL, GAP, LEFT, HEAD, FOOT = 208, 14, 190, 64, 36
INK, SOFT, PAPER, MERGED = (28, 28, 30), (90, 90, 96), (255, 255, 255), (217, 72, 15)
FADED = 0.86
"""How much of a patch that is no token of its own is paper."""


def write_png(look: Look, path: Path) -> None:
    """Draw a look.

    Args:
        look: What to draw.
        path: The file to write.
    """
    from PIL import Image, ImageDraw, ImageFont

    titles = column_titles(look)
    height = max(round(CELL * i.size[1] / i.size[0]) for _, i in look.pictures)
    size = (
        LEFT + len(titles) * (CELL + GAP),
        HEAD + len(look.rows) * (height + FOOT + GAP),
    )
    sheet = Image.new("RGB", size, PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    pen.text((GAP, 8), f"{look.model} ({look.weights}): {look.plan}", INK, font)
    for column, title in enumerate(titles):
        pen.text((LEFT + column * (CELL + GAP), HEAD - 20), title, SOFT, font)
    for place, row in enumerate(look.rows):
        top = HEAD + place * (height + FOOT + GAP)
        text = "\n".join(textwrap.wrap(_plain(row_title(look, row)), 26))
        pen.text((GAP, top), text, INK, font)
        image = look.pictures[row.picture][1]
        sheet.paste(_scaled(image), (LEFT, top))
        for column, stage in enumerate(row.stages, 1):
            x = LEFT + column * (CELL + GAP)
            sheet.paste(_scaled(_drawn(look, image, stage)), (x, top))
            words = "\n".join(textwrap.wrap(stage_words(stage, look.patches), 34))
            pen.text((x, top + height + 3), words, SOFT, font)
    sheet.save(path)


def _scaled(image: Any) -> Any:
    from PIL.Image import Resampling

    ratio = CELL / image.size[0]
    return image.resize((CELL, round(ratio * image.size[1])), Resampling.NEAREST)


def _drawn(look: Look, image: Any, stage: StageView) -> Any:
    from PIL import Image

    rows, columns = look.grid
    width, height = image.size[0] / columns, image.size[1] / rows
    heaviest = max(stage.merged.values(), default=1.0)
    shades = {patch: (PAPER, FADED) for patch in (*stage.earlier, *stage.gone)}
    shades |= {p: (MERGED, 0.35 + 0.55 * w / heaviest) for p, w in stage.merged.items()}
    drawn = image.copy()
    for patch, (colour, share) in shades.items():
        x, y = round(patch % columns * width), round(patch // columns * height)
        box = (x, y, round(x + width), round(y + height))
        part = image.crop(box)
        drawn.paste(Image.blend(part, Image.new("RGB", part.size, colour), share), box)
    return drawn


def _plain(text: str) -> str:
    """Text that Pillow's own font can draw."""
    return text.replace("“", '"').replace("”", '"').encode("latin-1", "replace").decode("latin-1")
