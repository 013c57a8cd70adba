"""Read icon sets in the JSON format of Iconify, and render their icons."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.data.files import DataSetError

# "woman-singer-medium-light" and the like; a name counts only if it is there without this, too.
_TONE_SUFFIX = re.compile(r"(-(medium-light|medium-dark|light|medium|dark))+$")


@dataclass(frozen=True)
class IconSet:
    """An icon set.

    Attributes:
        style: Its name in the package.
        info: Its "title", "author", "license" and "url".
        icons: A complete SVG image per icon, by the icon's name.
        aliases: Other names of icons, without those that turn the picture.
        skin_tones: How many icons were left out because they only change the tone of the skin.
        withdrawn: How many were left out because the set no longer lists them.
    """

    style: str
    info: dict[str, str]
    icons: dict[str, str]
    aliases: dict[str, str]
    skin_tones: int
    withdrawn: int


def parse(style: str, content: Mapping[str, Any]) -> IconSet:
    """Parse an icon set.

    Args:
        style: Its name in the package.
        content: Its decoded JSON.

    Returns:
        The set without skin tones and without withdrawn icons.

    Raises:
        DataSetError: If the content is not an icon set.
    """
    try:
        known = content["icons"]
        toned = {name for name in known if is_skin_tone(name, known)}
        hidden = {name for name in known if known[name].get("hidden")} - toned
        icons = {
            name: _svg(icon, content)
            for name, icon in known.items()
            if name not in toned and name not in hidden
        }
        aliases = {
            name: alias["parent"]
            for name, alias in content.get("aliases", {}).items()
            if set(alias) <= {"parent", "hidden"}
            and name not in icons
            and not is_skin_tone(name, known)
        }
        about = content["info"]
        info = {
            "title": about["name"],
            "author": about["author"]["name"],
            "license": about["license"]["spdx"],
            "url": about["author"]["url"],
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise DataSetError(
            f"{style} is not an icon set as Iconify writes them ({type(error).__name__}: {error}): "
            "it needs `icons` with a `body` each, and `info` with name, author and license."
        ) from error
    return IconSet(style, info, icons, aliases, len(toned), len(hidden))


def is_skin_tone(name: str, known: Mapping[str, Any]) -> bool:
    """Check whether an icon is another one with another tone of the skin.

    Args:
        name: The icon's name.
        known: Icons of the same set, by name.

    Returns:
        Whether it is; "horizontal-traffic-light" is not.
    """
    plain = _TONE_SUFFIX.sub("", name)
    return "skin-tone" in name or (plain != name and plain in known)


def _svg(icon: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    """Complete an icon: its body in its box, which the set gives where the icon does not."""
    default = {"left": 0, "top": 0, "width": 16, "height": 16}
    box = (icon.get(key, content.get(key, default[key])) for key in default)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{" ".join(str(number) for number in box)}">{icon["body"]}</svg>'
    )


def render(svg: str, size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Render an icon, as large as fits and centred.

    Args:
        svg: A complete SVG image.
        size: Width and height of the picture in pixels.

    Returns:
        The picture over white [size, size, 3], and how opaque it is [size, size], 255 fully.

    Raises:
        ValueError: If the image cannot be rendered.
    """
    try:
        resvg = import_module("resvg_py")
    except ImportError as error:
        raise DataSetError(
            "resvg-py renders the emojis, but is not installed: pip install resvg-py."
        ) from error
    png = resvg.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    with Image.open(io.BytesIO(bytes(png))) as image:
        drawn = image.convert("RGBA")
    canvas = Image.new("RGBA", (size, size))
    drawn.thumbnail((size, size))
    canvas.paste(drawn, ((size - drawn.width) // 2, (size - drawn.height) // 2))
    pixels = np.asarray(canvas)
    return over(pixels[..., :3], pixels[..., 3], 255), pixels[..., 3].copy()


def over(
    colours: NDArray[np.uint8], alpha: NDArray[np.uint8], ground: NDArray[np.uint8] | int
) -> NDArray[np.uint8]:
    """Lay a picture over a ground.

    Args:
        colours: The picture [H, W, 3].
        alpha: How opaque it is [H, W].
        ground: What is behind [H, W, 3], or one value for all of it.

    Returns:
        Both as one picture [H, W, 3].
    """
    share = alpha.astype(np.int32)[..., None]
    mixed = colours.astype(np.int32) * share + np.asarray(ground, np.int32) * (255 - share)
    return ((mixed + 127) // 255).astype(np.uint8)
