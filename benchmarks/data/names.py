"""One name for the same emoji in all styles, and which names are held out."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from benchmarks.data.files import DataSetError

RUN_TOGETHER = ("fxemoji",)  # "brokenheart"
NUMBERED = ("streamline-emojis",)  # "bird-1", "bird-2": pictures of the same
MIN_STYLES = 3

Key = tuple[str, str]  # style, name in the icon set


def unify_names(
    icons: Mapping[str, Iterable[str]], aliases: Mapping[str, Mapping[str, str]]
) -> dict[Key, str]:
    """Find one name for each icon, the same for the same emoji in another style.

    Sets spell names differently: "flag-for-peru", "brokenheart", "bird-2", "lion-face". Two
    spellings are one name where a set lists one as an alias of the other, unless some set has
    pictures of both. A name that is run together and cannot be cut into known words has none.

    Args:
        icons: Names of the icons in each set.
        aliases: For each set, other names of its icons.

    Returns:
        The words of a name, lower case with blanks, by style and icon.
    """
    spaced = [style for style in icons if style not in RUN_TOGETHER]
    drawn = {_plain(name) for style in spaced for name in icons[style]}
    known = drawn | {_plain(name) for style in spaced for name in aliases.get(style, {})}
    joined = {name.replace("-", ""): name for name in sorted(known, reverse=True)}
    spelt = {
        (style, icon): _respelt(_plain(icon), style, drawn, joined)
        for style in icons
        for icon in icons[style]
    }
    group = _merge_aliases(spelt, aliases)
    words = Counter(word for name in known for word in name.split("-"))
    unified = {}
    for (style, icon), name in spelt.items():
        cut: str | None = group[name]
        if style in RUN_TOGETHER and group[name] not in known:
            cut = _cut(group[name], words)
        if cut is not None:
            unified[style, icon] = cut.replace("-", " ")
    return unified


def hold_out(styles: Mapping[str, set[str]], count: int, seed: int) -> set[str]:
    """Choose names to hold out; whether one is chosen depends little on which others there are.

    Args:
        styles: In which styles there are pictures of each name.
        count: How many names to choose.
        seed: Decides which.

    Returns:
        Names with pictures in three or more styles.

    Raises:
        DataSetError: If there are too few.
    """
    able = [name for name, found in styles.items() if len(found) >= MIN_STYLES]
    if not 1 <= count <= len(able) or count >= len(styles):
        raise DataSetError(
            f"{count} names cannot be held out: {len(able)} of {len(styles)} names have pictures "
            f"in {MIN_STYLES} or more styles, and some must be left to train on; pass another "
            "--held-out or more --sets."
        )
    return set(sorted(able, key=lambda name: draw(name, seed))[:count])


def draw(name: str, seed: int) -> str:
    """Compute a pseudo-random order of names.

    Args:
        name: The name.
        seed: Changes the order.

    Returns:
        What to sort the name by.
    """
    return hashlib.sha256(f"{seed} {name}".encode()).hexdigest()


def _plain(name: str) -> str:
    """Return a flag's name without its prefix' variants."""
    return re.sub(r"^flag-for-(flag-)?", "flag-", name.lower().replace("_", "-"))


def _respelt(name: str, style: str, drawn: set[str], joined: Mapping[str, str]) -> str:
    together, numbered = style in RUN_TOGETHER, style in NUMBERED
    # "axe2" is another picture of "axe", "bird-2" of "bird", but "keycap-2" is not of "keycap".
    number = re.fullmatch(r"(.*[a-z])-\d" if numbered else r"(.*[a-z])\d", name)
    if number and (numbered or number[1] in drawn or (together and number[1] in joined)):
        name = number[1]
    if together:
        name = joined.get(name.replace("-", ""), name)
    if numbered and f"flag-{name}" in drawn:
        return f"flag-{name}"  # there, flags have the name of the country alone
    return name


def _merge_aliases(
    spelt: Mapping[Key, str], aliases: Mapping[str, Mapping[str, str]]
) -> dict[str, str]:
    """Return the name to use for each name that has pictures."""
    styles: dict[str, set[str]] = defaultdict(set)
    for (style, _), name in spelt.items():
        styles[name].add(style)
    group = {name: {name} for name in styles}
    pairs = Counter(
        (_plain(alias), _plain(parent))
        for style in aliases
        for alias, parent in aliases[style].items()
    )
    for pair, _ in sorted(pairs.items(), key=lambda item: (-item[1], item[0])):
        one, other = (group.setdefault(name, {name}) for name in pair)
        if one is other or _styles(one, styles) & _styles(other, styles):
            continue
        one |= other
        for name in other:
            group[name] = one
    return {
        name: min((n for n in group[name] if n in styles), key=lambda n: (-len(styles[n]), n))
        for name in styles
    }


def _styles(names: set[str], styles: Mapping[str, set[str]]) -> set[str]:
    return {style for name in names if name in styles for style in styles[name]}


def _cut(name: str, words: Mapping[str, int]) -> str | None:
    """Cut a name that is run together into the fewest known words; None if that fails."""
    if "-" in name:
        return name
    # Short words that occur in one name alone are no words, or fit anywhere.
    best: list[tuple[str, ...] | None] = [()]
    for end in range(1, len(name) + 1):
        found = [
            (*before, name[start:end])
            for start, before in enumerate(best)
            if before is not None
            and end - start > 1
            and words.get(name[start:end], 0) > (end - start < 4)
        ]
        best.append(min(found, key=lambda cut: (len(cut), cut), default=None))
    return None if best[-1] is None else "-".join(best[-1])
