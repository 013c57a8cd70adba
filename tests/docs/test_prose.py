"""Phrases that the docs avoid, with what to write instead; single words are in pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("research/*.md")),
    *sorted(ROOT.glob("examples/**/*.md")),
]
AVOIDED = {
    r"\b[Hh]e\b|\b[Hh]is\b": "they, their, or you",
    r"\bgo(es|ing)? on (from|from there|where|in|to train)\b": "continue, continued from",
    r"\b([Aa]n|the|of|in) own (code|loop|loops|caption of|text encoder of)\b": "your own",
    r"\bgrows? surer\b": "becomes overconfident",
    r"\b(is|are) calm\b": "seed noise is small",
    r"\bas they stand\b": "unchanged",
    r"\bkeeps its meaning\b|\bwhich is none\b": "ignores it",
    r"\bshall\b": "must, will",
    r"\b[Tt]rainings so (short|long)\b": "trainings this short",
    r"\bturned round\b": "with its sign turned",
}
"""Patterns, and what to write."""


def prose(path: Path) -> str:
    """Return a page without code, links' targets, and tables that commands write."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"<!-- (.+?) -->.*?<!-- end \1 -->", "", text, flags=re.DOTALL)
    text = re.sub(r"```.*?```|`[^`\n]+`|\]\([^)]*\)", "", text, flags=re.DOTALL)
    return " ".join(text.split())


def faults(text: str) -> list[str]:
    return [
        f"{found[0]!r}: write {instead!r}"
        for pattern, instead in AVOIDED.items()
        for found in re.finditer(pattern, text)
    ]


def test_phrases() -> None:
    assert len(PAGES) > 20
    assert {path.name: found for path in PAGES if (found := faults(prose(path)))} == {}


def test_they_would_be_found() -> None:
    for text in (
        "what he writes",
        "in own code",
        "it goes on from the weights",
        "None takes them as they stand",
    ):
        assert faults(text)
    assert not faults("in your own code, the training continues")


def test_the_docs_are_short() -> None:
    """What was tried belongs into research/, which docs/findings.md links."""
    words = {path: len(path.read_text().split()) for path in PAGES}
    assert sum(words[path] for path in ROOT.glob("docs/*.md")) <= 20_000
    assert words[ROOT / "README.md"] <= 800


def test_every_note_is_linked_from_the_findings() -> None:
    linked = re.findall(r"\(\.\./research/(\w+)\.md\)", (ROOT / "docs/findings.md").read_text())
    assert {*linked} == {path.stem for path in ROOT.glob("research/*.md")}
