"""Every number of README and of the main pages that comes from a log is that of the log.

`tests/page_numbers` has a file for each page: its sentences, with their numbers computed from
`docs/results`, and the numbers that no log has.
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("scipy")
pytest.importorskip("open_clip")

from page_numbers.logs import answered, asked

from benchmarks import readme, speed
from benchmarks.tables import fill
from elip_plugin.config import PRESETS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "page_numbers"


def place_of(name: str) -> str:
    """Return where the page of a module is, of README, `docs` and `research`."""
    if name == "readme":
        return "README.md"
    return next(f"{folder}/{name}.md" for folder in ("docs", "research")
                if (ROOT / folder / f"{name}.md").is_file())  # fmt: skip


PAGES = {
    place_of(file.stem): import_module(f"page_numbers.{file.stem}")
    for file in sorted(FOLDER.glob("*.py"))
    if file.stem not in ("__init__", "logs")
}

NUMBER = r"[+-]?\d+\.\d+(?: ± \d+\.\d+)?%?|\b\d+%"
"""What looks like a result: a decimal, with its interval, or a share."""

NO_RESULT = (
    r"95% interval",
    r"arXiv \d+\.\d+",
    r"Apache-2\.0",
    r"\b\d+\.\d+\.\d+\b",  # versions
    r"Python (?:up to )?3\.\d+(?: to 3\.\d+)?",
    r"torch 2\.\d+",
    r"the last 15%|last 15% of the steps",  # of a recipe, as `final_unpruned`
)
"""What looks like a result and is none, on any page."""


def flat(text: str) -> str:
    """Return a page in one line, without code blocks and tables that commands write."""
    text = re.sub(r"<!-- (.+?) -->.*?<!-- end \1 -->", "", text, flags=re.DOTALL)
    return " ".join(re.sub(r"```.*?```", "", text, flags=re.DOTALL).split())


def missing(text: str, sentences: list[str]) -> list[str]:
    """Return the sentences that a page does not have, in the numbers of the logs."""
    return [sentence for sentence in sentences if " ".join(sentence.split()) not in text]


def left(text: str, sentences: list[str], known: tuple[str, ...]) -> list[str]:
    """Return the numbers of a page that are in no sentence and not known."""
    for sentence in sentences:
        text = text.replace(" ".join(sentence.split()), "")
    text = re.sub(r"`[^`]*`|\]\([^)]*\)", "", text)
    for phrase in known:
        assert phrase in text, phrase
        text = text.replace(phrase, "")
    text = re.sub("|".join(NO_RESULT), "", text)
    return re.findall(NUMBER, text)


@pytest.mark.parametrize("page", PAGES)
def test_the_numbers_of_a_page_are_those_of_the_logs(page: str) -> None:
    text, sentences = flat((ROOT / page).read_text()), list(PAGES[page].sentences())
    assert missing(text, sentences) == []
    assert left(text, sentences, getattr(PAGES[page], "NO_LOG", ())) == []


def test_third_is_ahead_of_each_other_preset() -> None:
    """As README and docs/plans.md say."""
    training = {name for name, config in PRESETS.items() if config.eval_mode == "full"}
    named = training - {"third"}
    assert named == set(PAGES["research/quality.md"].OTHERS)
    for ask in (asked, answered):
        for name in named:
            ahead = ask(f"Does the preset third score better than {name}")
            assert ahead.seeds >= 5 and ahead.mean > ahead.half > 0


def test_the_table_of_plans_is_that_of_the_logs() -> None:
    """Write it anew with `python -m benchmarks.readme`."""
    text = readme.PAGE.read_text()
    assert text == fill(text, readme.tables())
    assert "| `half` | 0." in text


def test_the_tables_of_times_are_those_of_the_runs() -> None:
    """Write them anew with `python -m benchmarks.speed report --write`."""
    text = speed.PAGE.read_text()
    assert text == fill(text, speed.tables())
    assert text.count("| `half` | 0.") == 2
    settings = [speed.read(name).setting for name in speed.RUNS]
    assert {(s["device"], s["threads"], s["torch"][:4]) for s in settings} == {
        ("AMD EPYC", 2, "2.13")
    }  # as the page says for all
    for name, options in speed.RUNS.items():
        made = speed.read(name).setting
        assert re.match(f"--model elip[-_]{made['model']} --batch {made['batch']} ", options), name
        assert f"--rounds {made['rounds']} " in options, name


def test_how_many_are_checked() -> None:
    sentences = [sentence for page in PAGES.values() for sentence in page.sentences()]
    numbers = [number for sentence in sentences for number in re.findall(NUMBER, sentence)]
    assert len(numbers) > 100


@pytest.mark.parametrize("page", PAGES)
def test_a_wrong_number_is_found(page: str) -> None:
    """Whichever number of a sentence of the page is changed by one in its last digit."""
    text, sentences = flat((ROOT / page).read_text()), list(PAGES[page].sentences())
    for sentence in sentences:
        for found in re.finditer(NUMBER, sentence):
            number = found[0]
            digit = max(place for place, letter in enumerate(number) if letter.isdigit())
            wrong = number[:digit] + str((int(number[digit]) + 1) % 10) + number[digit + 1 :]
            changed = sentence[: found.start()] + wrong + sentence[found.end() :]
            assert missing(text.replace(sentence, changed), sentences) == [sentence]
