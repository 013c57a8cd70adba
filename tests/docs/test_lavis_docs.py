"""The table in the docs says what the classes say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("lavis")

from elip_plugin.hosts.lavis.models import ARCHS

PAGE = Path(__file__).parents[2] / "docs" / "lavis.md"
START, RULE = "| arch | training is guided by", "|---|---|---|\n"


def table() -> str:
    rows = []
    for name, arch in ARCHS.items():
        guided = "the image alone" if arch.guided_by == "nothing" else f"the {arch.guided_by}"
        if arch.images_per_text > 1:
            guided += ", both images"
        modes = "`full`, `image`, `text`" if arch.text_at_test else "`full`, `image`"
        rows.append(f"| `{name}` | {guided} | {modes} |\n")
    return "".join(rows)


def test_the_table_of_archs_is_current() -> None:
    """Write it anew with ELIP_WRITE_DOCS=1."""
    text = PAGE.read_text()
    head, rest = text.split(RULE, 1)
    tail = rest[rest.index("\n\n") :] if not rest.startswith("<!--") else rest[rest.index("\n") :]
    if os.environ.get("ELIP_WRITE_DOCS"):
        PAGE.write_text(head + RULE + table().rstrip("\n") + tail)
    assert table() in PAGE.read_text()
