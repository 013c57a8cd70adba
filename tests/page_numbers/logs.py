"""What the logs say, in the words of the pages."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import speed
from benchmarks.board import report
from benchmarks.board.cost import read_ratios
from benchmarks.board.measure import Measure
from benchmarks.board.variants import REFERENCE
from benchmarks.photos import page as photos
from benchmarks.photos.questions import QUESTIONS as photo_questions
from benchmarks.photos.questions import TOP1
from benchmarks.quality import page as board
from benchmarks.quality.questions import MRR, QUESTIONS
from benchmarks.stats import Difference, difference
from benchmarks.vqa import report as vqa

ROOT = Path(__file__).parents[2]
HALF, LOWRES, RANDOM = "tome", "pool, long end", "random 0.5, end"
LEVEL, THIRD = "tome 0.48, end", "tome 0.36"
TAUGHT = "taught similarity 0.25"
FINETUNING = ROOT / "docs" / "results" / "finetuning"


@cache
def emojis() -> Any:
    return board.read(board.RESULTS)


@cache
def photographs() -> Any:
    return photos.read(photos.RESULTS)


MOSAICS = "mosaics"
"""In place of an arch: BLIP on photographs."""


@cache
def answers_to_questions(arch: str = "blip_vqa") -> Any:
    groups = vqa.group(vqa.results_log.read(vqa.RESULTS / vqa.LOG))
    if arch == MOSAICS:
        return groups["photographs", "blip_vqa", "continued", 4, "colour"]
    return groups["emojis", arch, "continued", 9, "colour"]


def gap(
    name: str, budget: str = "steps", regime: str = "scratch",
    found: Callable[[], Any] = emojis, measure: Measure = MRR,
) -> Difference:  # fmt: skip
    """How much a variant scored above unpruned training, over all seeds that both have."""
    results = found()[regime]
    own = report.scores(results, (name, budget), measure)
    return difference(own, report.scores(results, (REFERENCE, "steps"), measure))


def asked(start: str, regime: str = "scratch") -> Difference:
    """The answer to the question of the board that begins so."""
    (question,) = [question for question in QUESTIONS if question.text.startswith(start)]
    found = report.answer(emojis()[regime], question, MRR)
    assert found is not None
    return found


@cache
def rows(regime: str = "scratch") -> dict[tuple[str, str], report.BoardRow]:
    made = report.board(emojis()[regime], read_ratios(board.RESULTS / board.TIMES), MRR)
    return {(row.variant, row.budget): row for row in made}


def step(name: str, budget: str = "steps") -> str:
    return f"{rows()[name, budget].step:.2f}"


def said(found: Difference, sign: str = "+") -> str:
    """A difference in points, such as "+2.4 ± 0.7"; with the sign "" also a minus is left out."""
    value = f"{100 * found.mean:{'+' if sign == '+' else ''}.1f}"
    value = re.sub(r"^[+-](?=0\.0$)", "", value)
    half = "" if found.half != found.half else f" ± {100 * found.half:.1f}"
    return (value.lstrip("-") if sign == "" else value) + half


def bare(found: Difference) -> str:
    return said(found, "")


def span(values: list[float], digits: int = 1) -> str:
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def right(name: str, budget: str = "none", arch: str = "blip_vqa") -> str:
    return f"{100 * mean(vqa.right(answers_to_questions(arch)[name, budget]).values()):.1f}"


def over(
    one: str, other: str, budget: str = "none", arch: str = "blip_vqa", other_budget: str = ""
) -> Difference:
    keys = (one, budget), (other, other_budget or budget)
    found = vqa.compare(answers_to_questions(arch), *keys)
    assert found is not None
    return found


def plans_score(name: str, key: str, budget: str = "none", arch: str = "blip_vqa") -> float:
    results = answers_to_questions(arch)[name, budget]
    return mean(row["scores"]["plan"][key] for row in results.values())


def share(name: str, budget: str = "none") -> str:
    return f"{100 * plans_score(name, 'share', budget):.0f}%"


def lift(name: str, budget: str = "none", arch: str = "blip_vqa") -> str:
    return f"{plans_score(name, 'lift', budget, arch):.2f}"


def cost(name: str, budget: str = "steps") -> str:
    return f"{next(iter(answers_to_questions()[name, budget].values()))['operations']:.2f}"


LEVEL_AT_STEPS = "The preset level, 0.6 of the step"


def question_of(start: str) -> Any:
    (question,) = [one for one in photo_questions if one.text.startswith(start)]
    return question


def interval(start: str) -> str:
    """The confidence of an answer's interval."""
    return f"{100 * question_of(start).confidence:.1f}%"


def answered(start: str) -> Difference:
    answer = report.answer(photographs()["scratch"], question_of(start), TOP1)
    assert answer is not None
    return answer


def step_on_photographs(name: str, budget: str = "steps") -> str:
    made = report.board(photographs()["scratch"], {}, TOP1)
    (row,) = [row for row in made if (row.variant, row.budget) == (name, budget)]
    return f"{row.step:.2f}"


def time_of_step(plan: str) -> str:
    """The measured time of ViT-B/16's whole step over that of an unpruned one."""
    return f"{speed.read('vit-b-16').by_pass[plan, 'step']['ratio']:.2f}"
