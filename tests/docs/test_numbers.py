"""Every number of README and of the main pages that comes from a log is that of the log.

A sentence is written here as on its page, with its numbers computed from `docs/results`. What is
left of a page's numbers is listed with the reason why no log has it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from scripts import load

pytest.importorskip("scipy")
pytest.importorskip("open_clip")

from benchmarks import readme, speed
from benchmarks.board import report
from benchmarks.board.cost import read_ratios
from benchmarks.board.measure import ALL, Measure
from benchmarks.board.variants import REFERENCE
from benchmarks.photos import page as photos
from benchmarks.photos.questions import QUESTIONS as photo_questions
from benchmarks.photos.questions import TOP1
from benchmarks.quality import page as board
from benchmarks.quality.questions import MRR, QUESTIONS
from benchmarks.stats import Difference, difference
from benchmarks.tables import fill
from benchmarks.vqa import report as vqa
from elip_plugin import ElipConfig, plan

ROOT = Path(__file__).parents[2]
HALF, LOWRES, RANDOM = "tome", "pool, long end", "random 0.5, end"
LEVEL, THIRD = "tome 0.48, end", "tome 0.36"
NUMBER = r"[+-]?\d+\.\d+(?: ± \d+\.\d+)?%?|\b\d+%"
"""What looks like a result: a decimal, with its interval, or a share."""


# -- what the logs say


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


# -- what the pages say


def of_readme() -> Iterator[str]:
    by_steps, by_operations = gap(HALF), gap(HALF, "operations")
    photo_steps = gap(HALF, found=photographs, measure=TOP1)
    photo_operations = gap(HALF, "operations", found=photographs, measure=TOP1)
    yield (
        f"**It saves** {1 - rows()[HALF, 'steps'].step:.2f} of the operations of a training step "
        f"with the recommended plan, `half`. Spent on more steps, that gained "
        f"{bare(by_operations)} points of MRR on emojis ({by_operations.seeds} seeds) and "
        f"{bare(photo_operations)} points of zero-shot top-1 on photographs "
        f"({photo_operations.seeds} seeds"
    )
    yield f"**It costs**, at equal steps, {said(by_steps)} and {said(photo_steps)} points."
    level = answered(LEVEL_AT_STEPS)
    yield (
        f"`level`, at {step_on_photographs(LEVEL)} of the step, costs {said(level)} on photographs "
        f"({level.seeds} seeds, an interval of {interval(LEVEL_AT_STEPS)})."
    )
    third = gap(THIRD, "operations"), gap(THIRD, "operations", found=photographs, measure=TOP1)
    yield (
        f"`third`, at {step(THIRD, 'operations')} of the step, gained {bare(third[0])} and "
        f"{bare(third[1])} points ({third[0].seeds} and {third[1].seeds} seeds)."
    )


def of_plans() -> Iterator[str]:
    config = ElipConfig.preset("half")
    counted = plan(config, num_patches=196, depth=12).forward_cost(768)
    yield f"| {counted:.2f} | the same tower by the tokens that enter each block"
    yield f"| {step(HALF)} | the whole step of the quality report's small CLIP"
    yield f"| {rows()[HALF, 'steps'].measured:.2f} | the measured time of that small step |"


def of_quality() -> Iterator[str]:
    scratch, measured = gap(HALF), rows()[HALF, "steps"].measured
    yield f"every block; {step(HALF)} of the step counted, {measured:.2f} measured)"
    yield (
        f"{said(scratch)} and {said(gap(HALF, 'operations'))} from scratch, "
        f"{said(gap(HALF, regime='continued'))} and "
        f"{said(gap(HALF, 'operations', 'continued'))} continued from trained weights, "
        f"{scratch.seeds} seeds each."
    )
    trained, unpruned = "Trained with ToMe", "After unpruned training"
    yield (
        f"cost a model that `half` trained {said(asked(trained))} points (continued: "
        f"{said(asked(trained, 'continued'))}), and a model that was trained unpruned "
        f"{bare(asked(unpruned))} (continued: {bare(asked(unpruned, 'continued'))})."
    )
    losses: dict[str, list[float]] = {"half by attention": [], "half by random": []}
    for regime in ("scratch", "continued"):
        for name, budget in ((REFERENCE, "steps"), (HALF, "steps"), (HALF, "operations")):
            scores = emojis()[regime][name, budget].values()
            for test, lost in losses.items():
                lost.append(
                    mean(100 * (s["scores"][ALL]["mrr"] - s["scores"][test]["mrr"]) for s in scores)
                )
    attention, chance = losses.values()
    yield (
        f"By the class token's attention the same half costs {min(attention):.0f} to "
        f"{max(attention):.0f} points, at random about {mean(chance):.0f}."
    )
    merging, random = asked("Does merging by ToMe"), asked("Half of the patches at the input")
    yield (
        f"by {bare(merging)} points ({merging.seeds} seeds). That random half itself loses "
        f"{bare(random)} at equal steps."
    )
    by_attention = asked("Does the class token's attention")
    yield (
        f"{by_attention.seeds} seeds: the class token's attention {said(by_attention)}, the text "
        f"(at weight 0.5) {said(asked('Does the text choose better than chance'))}; the text over "
        f"attention {said(asked('Does the text choose better than the picture'))}."
    )
    staged = [f"{way} staged, end" for way in ("random", "attention", "text 0.5")]
    yield (
        f"cost {span([-100 * gap(name).mean for name in staged])} points at equal steps in each of "
        f"the three ways. Dropping at the input or in stages makes no difference "
        f"({bare(asked('Dropping at once'))}), nor do clusters of similar patches that leave first "
        f"({said(asked('Do clusters'))}, {asked('Do clusters').seeds} seeds)."
    )
    low, lows = gap(LOWRES), gap(LOWRES, "operations")
    early, earlier = gap("pool, end"), gap("pool, end", "operations")
    yield (
        f"**`lowres`** ({step(LOWRES)} of the step): {said(low)} at equal steps ({low.seeds} "
        f"seeds), {said(lows)} at equal operations ({lows.seeds})."
    )
    yield f"ahead of `half` by {bare(asked('Does the preset lowres score better'))} (seeds 5 to 9)"
    yield f"it loses more ({said(asked('Trained by the preset lowres'))})."
    yield (
        f"({step('pool, end')} of the step) {said(early)} ({early.seeds} seeds) and "
        f"{said(earlier)} ({earlier.seeds} seed)."
    )
    third = gap(THIRD, "operations")
    yield (
        f"**`third`** ({step(THIRD, 'operations')} of the step) gains {bare(third)} at equal "
        f"operations ({third.seeds} seeds) and is ahead of `half` by "
        f"{bare(asked('Does the preset third score better than half'))}, of `lowres` by "
        f"{bare(asked('Does the preset third score better than lowres'))}"
    )
    yield from of_photographs()
    paper, fast = gap("paper"), gap("fast")
    yield (
        f"**`paper`** ({step('paper')} of the step) loses {bare(paper)} at equal steps "
        f"({paper.seeds} seeds) and is behind `half` on those seeds, by "
        f"{bare(asked('Does the preset half score better than the preset paper'))}"
    )
    yield f"**`fast`** ({step('fast')}) loses {bare(fast)} ({fast.seeds} seeds)"
    for regime, text in (
        ("scratch", "points of MRR from scratch (standard deviation of {} seeds, mean {:.1f})"),
        ("continued", "continued ({} seeds, mean {:.1f})"),
    ):
        found = list(report.scores(emojis()[regime], (REFERENCE, "steps"), MRR).values())
        deviation = 100 * report.seed_deviation(emojis()[regime], MRR)
        yield f"{deviation:.2f} " + text.format(len(found), 100 * mean(found))
    steps = [next(iter(emojis()["scratch"][key].values()))["steps"] for key in
             ((HALF, "operations"), (REFERENCE, "steps"))]  # fmt: skip
    yield f"(`half`: {5 * steps[0] / steps[1]:.1f} passes over the pairs in place of 5)"
    yield (
        f"({rows()[HALF, 'operations'].loss:.1f} in place of {rows()[REFERENCE, 'steps'].loss:.1f})"
    )


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


def of_photographs() -> Iterator[str]:
    level = answered(LEVEL_AT_STEPS)
    yield (
        f"**`level`** ({step_on_photographs(LEVEL)} of the step) is at {said(level)} at equal "
        f"steps ({level.seeds} seeds that took no part in its choice; they were added in three "
        f"parts, so the interval is one of {interval(LEVEL_AT_STEPS)}), "
        f"where `half` is at "
        f"{said(gap(HALF, found=photographs, measure=TOP1))}. At equal operations it gains "
        f"{bare(answered('Is training with the preset level better'))}"
    )
    third = answered("Is training with the preset third")
    yield (
        f"**`third`** ({step_on_photographs(THIRD, 'operations')}) gains {bare(third)} at equal "
        f"operations ({third.seeds} seeds that took no part in its choice), "
        f"{bare(answered('Does the preset third score better than half'))} more than `half`, "
        f"{bare(answered('Does the preset third score better than level'))} more than `level`, "
        f"{bare(answered('Does the preset third score better than lowres'))} more than `lowres`"
    )
    lowres = answered("Does the preset lowres score better than half")
    yield (
        f"**`lowres`** ({step_on_photographs(LOWRES)}) gains "
        f"{bare(answered('Is the preset lowres better than unpruned'))} at equal operations and is "
        f"behind `half` there by {bare(lowres)} ({lowres.seeds} seeds)"
    )


def step_on_photographs(name: str, budget: str = "steps") -> str:
    made = report.board(photographs()["scratch"], {}, TOP1)
    (row,) = [row for row in made if (row.variant, row.budget) == (name, budget)]
    return f"{row.step:.2f}"


def of_speed() -> Iterator[str]:
    run = speed.read("choosing")
    row = run.by_pass["fast", "step"]
    yield (
        f"its step takes {row['ratio']:.2f} ({row['low']:.2f}-{row['high']:.2f}) of that of random "
        f"dropping with the same counts"
    )


def of_finetuning() -> Iterator[str]:
    compared = load("examples/compare_finetuning.py")
    groups = compared.read(FINETUNING.glob("*.json"))
    yield " ".join(compared.table(groups).split())
    none, half, longer = (
        mean(r[f"{way}_R@1"] for r in groups[key] for way in ("image_to_text", "text_to_image"))
        for key in (("none", 156), ("half", 156), ("half", 260))
    )
    yield (
        f"By their means `half` has an R@1, both ways, of {half:.1f}% at equal steps and "
        f"{longer:.1f}% at equal operations, unpruned training {none:.1f}%."
    )


def of_embedding() -> Iterator[str]:
    trained, unpruned = asked("Trained with ToMe"), "After unpruned training"
    yield f"({said(trained)} points of MRR from scratch, {trained.seeds} seeds)"
    yield (
        f"{bare(asked(unpruned))} and {bare(asked(unpruned, 'continued'))} points after unpruned "
        "training (from scratch and continued)."
    )
    after_half, after_unpruned, attention = map(
        answered,
        (
            "Trained with ToMe",
            "After unpruned training: does half of the token-layers at test time, by ToMe",
            "After unpruned training: does half of the token-layers by ToMe score as half by the",
        ),
    )
    assert {after_half.seeds, after_unpruned.seeds, attention.seeds} == {8}
    yield (
        f"{bare(after_half)} after `half`, {bare(after_unpruned)} after unpruned training (8 seeds "
        f"each); by the class token's attention {bare(attention)} more."
    )


def of_coming_from() -> Iterator[str]:
    found = asked("Does merging by ToMe")
    yield f"scored {bare(found)} points above random half (emojis, {found.seeds} seeds)"


def of_method() -> Iterator[str]:
    paper, fast = (
        plan(ElipConfig.preset(name), num_patches=196, depth=12) for name in ("paper", "fast")
    )
    yield (
        f"the plan `paper` takes {paper.forward_cost(768):.2f} of a forward and "
        f"{paper.train_cost(768):.2f} of a training step, `fast` {fast.forward_cost(768):.2f} and "
        f"{fast.train_cost(768):.2f}."
    )
    yield f"fall to {1 - paper.removed:.2f} with both."


TAUGHT = "taught similarity 0.25"


def of_questions() -> Iterator[str]:
    both = [right(REFERENCE), right(REFERENCE, "steps")]
    yield f"| nothing: all tokens | | {both[0]}% | {both[1]}% |"
    one = "similarity 0.25"
    yield (
        f"| **`similarity`** | {share(one)} | **{right(one)}%** | {right(one, 'steps')}% | | "
        f"**`similarity`, `choice_loss: 1.0`** | {share(TAUGHT, 'steps')} | | "
        f"**{right(TAUGHT, 'steps')}%** ({said(over(TAUGHT, REFERENCE, 'steps'))}; "
        f"{said(over(TAUGHT, REFERENCE, 'operations', other_budget='steps'))} at equal "
        "operations) |"
    )
    for text, name in (("chance (`random`)", "random 0.25"), ("the image alone", "image 0.25")):
        yield f"| {text} | {share(name)} | {right(name)}% | {right(name, 'steps')}% |"
    blend = "text 0.2 0.25"
    yield f"| the paper's blend of text and class token | {share(blend)} | {right(blend)}% | |"
    yield f"The step takes {cost(one)} of the operations, {cost(TAUGHT)} with `choice_loss`."
    half = "similarity 0.5"
    yield f"before: {right(half)}% ({said(over(half, REFERENCE))})."
    lost = -100 * over("tome 0.5", REFERENCE).mean, -100 * over(half, REFERENCE).mean
    yield f"it lost {lost[0]:.0f} points, where `similarity` lost {lost[1]:.1f}."


def of_lavis() -> Iterator[str]:
    yield f"ToMe lost {-100 * over('tome 0.5', REFERENCE).mean:.0f} points of right answers there"


def of_text() -> Iterator[str]:
    blends = [name for name, budget in answers_to_questions() if name.startswith("text ")]
    lifts = [plans_score(name, "lift") for name in blends]
    yield f"Its lift is {span(lifts, 2)} at every text weight"
    behind = [-100 * over(name, f"random {name.split()[-1]}").mean for name in blends]
    yield f"*worse* than from random patches, by {min(behind):.0f} to {max(behind):.0f} points"
    one, first, albef = "similarity 0.25", "first similarity 0.25", "albef_vqa"
    yield (
        f"lift {lift(one)}, {bare(over(one, 'random 0.25'))} points above random patches, "
        f"{said(over(one, REFERENCE))} from all tokens. A quarter from three quarters of the depth "
        f"on: {said(over(one + ' at 9', REFERENCE))}; half of the tokens: "
        f"{said(over('similarity 0.5', REFERENCE))}."
    )
    own, other = (vqa.right(answers_to_questions()[name, "none"]) for name in (one, first))
    ahead = [100 * (own[seed] - other[seed]) for seed in own]
    yield f"(lift {lift(first)}) in each of the five seeds, by {span(ahead)} points."
    yield (
        f"{bare(over(one, 'random 0.25', 'steps'))} points above random; **with the loss on the "
        f"choice** {bare(over(TAUGHT, 'random 0.25', 'steps'))} above random, "
        f"{bare(over(TAUGHT, 'image 0.25', 'steps'))} above the image alone, lift "
        f"{lift(TAUGHT, 'steps')}. That loss gains {bare(over(TAUGHT, one, 'steps'))}."
    )
    yield (
        f"{said(over(TAUGHT, REFERENCE, 'steps'))} points at equal steps, "
        f"{said(over(TAUGHT, REFERENCE, 'operations', other_budget='steps'))} at equal operations "
        f"({cost(TAUGHT)} of a step"
    )
    behind_all = -100 * over(TAUGHT, REFERENCE, "steps", albef).mean
    yield (
        f"lift {lift(one, arch=albef)} and lose {bare(over(one, REFERENCE, arch=albef))} to all "
        f"tokens; after training they are {bare(over(TAUGHT, 'random 0.25', 'steps', albef))} "
        f"above random and {behind_all:.1f} below unpruned"
    )
    ours = "transformers_blip_vqa"
    yield (
        f"2 seeds: weights never pruned lift {lift(one, arch=ours)}, "
        f"{100 * over(one, REFERENCE, arch=ours).mean:+.1f} from all tokens; trained with "
        f"`similarity` {100 * over(one, 'random 0.25', 'steps', ours).mean:.1f} above random and "
        f"{-100 * over(one, REFERENCE, 'steps', ours).mean:.1f} below unpruned."
    )
    for where, at in (("block 3 of 12", ""), ("block 6", " at 6"), ("block 9", " at 9")):
        on_random, on_image, on_all = (
            over(one + at, other, arch=MOSAICS)
            for other in ("random 0.25" + at, "image 0.25" + at, REFERENCE)
        )
        yield (
            f"from {where} on {bare(on_random)} points above random patches, {bare(on_image)} "
            f"above the image alone, {said(on_all)} from all tokens, with a lift of "
            f"{lift(one + at, arch=MOSAICS)} on the photograph and "
            f"{plans_score(one + at, 'box lift', arch=MOSAICS):.2f} on the object's own box"
        )
    yield f"All tokens answer {right(REFERENCE, arch=MOSAICS)}% of the questions."
    yield (
        "Half of the tokens from block 3 on lose "
        f"{bare(over('similarity 0.5', REFERENCE, arch=MOSAICS))} to all tokens"
    )
    for text, name in (
        ("random", "random staged, end"),
        ("similarity to another picture's caption", "similarity shuffled"),
        ("similarity to its own caption", "similarity staged, end"),
    ):
        found = [row for seed, row in emojis()["scratch"][name, "steps"].items() if seed < 5]
        losses = (mean(row["curve"][part]["loss"] for row in found) for part in (4, 5))
        scores = [100 * row["scores"][ALL]["mrr"] for row in found]
        yield (
            f"| {text} | {' | '.join(f'{loss:.2f}' for loss in losses)} | {mean(scores):.1f} "
            f"({min(scores):.1f}-{max(scores):.1f}) |"
        )
    shuffled, random = (
        [
            row["scores"][ALL]["mrr"]
            for seed, row in emojis()["scratch"][name, "steps"].items()
            if seed < 5
        ]
        for name in ("similarity shuffled", "random staged, end")
    )
    yield f"close to chance ({100 * mean(shuffled):.1f} and {100 * mean(random):.1f})."
    turned = emojis()["scratch"]["similarity turned", "steps"]
    scores = " and ".join(f"{100 * turned[seed]['scores'][ALL]['mrr']:.1f}" for seed in (0, 1))
    yield f"it leaks as well ({scores}, seeds 0 and 1)."


PAGES: dict[str, Callable[[], Iterator[str]]] = {
    "README.md": of_readme,
    "docs/plans.md": of_plans,
    "docs/quality.md": of_quality,
    "docs/speed.md": of_speed,
    "docs/finetuning.md": of_finetuning,
    "docs/embedding.md": of_embedding,
    "docs/coming_from.md": of_coming_from,
    "docs/method.md": of_method,
    "docs/questions.md": of_questions,
    "docs/lavis.md": of_lavis,
    "docs/text.md": of_text,
}

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

ELSEWHERE: dict[str, tuple[str, ...]] = {
    # Times are compared with docs/speed.md below.
    "README.md": (
        "CC BY-SA 4.0", "a snapshot of 4.2", "| 4.57, 5.24 |", "torchvision 0.28",
        "[0.61 of the time",
    ),
    "docs/plans.md": ("| 0.49 |", "| 0.56 |", "| 0.61 | the measured time of ViT"),
    # Two trainings from before the log, as the page says.
    "docs/quality.md": ("(+0.1 and 0.0; not in the log",),
    "docs/finetuning.md": ("transformers 5.24",),
    "docs/embedding.md": ("with Ray 2.60",),
    "docs/method.md": ("*t* = 0.2 is the text weight",),  # a default
    # A ratio to the power of 1, 2, 3.
    "docs/coming_from.md": ("0.7, 0.49, 0.34 for 0.7 at three layers",),
    "docs/questions.md": ("(chance 11%)",),  # 4 of 36 patches
    # Counted for ViT-g by `elip plan`; versions.
    "docs/lavis.md": (
        "(0.85 of ViT-g's forward;", "takes 0.51,", " 1.39)", "transformers below 4.27",
        "transformers 4.57", "diffusers 0.16 or transformers 4.33", "refuse 4.27",
    ),
    # One run of a LAVIS config each, and times, which have no log.
    "docs/text.md": (
        "all tokens 83.3%,", "the loss on the choice 80.7%, random 48.7%", "it cost 0.07 of",
        "keep ratio 0.25", "1.015 (0.97-1.03), counted 1.019;", "1.044 (0.96-1.06), counted 1.037,",
        "above the 1.02", "without that loss: 1.005)", "0.999 (0.97-1.04), counted 1.000",
        "0.987 (0.97-1.05), 1.008)", "lift 1.0 in every block",
    ),
}  # fmt: skip
"""Numbers of a page that no log has, with their neighbors."""


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
    text, sentences = flat((ROOT / page).read_text()), list(PAGES[page]())
    assert missing(text, sentences) == []
    assert left(text, sentences, ELSEWHERE.get(page, ())) == []


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


def test_the_times_of_other_pages_are_those_of_the_runs() -> None:
    run = speed.read("vit-b-16")
    counted, counted_step = (f"{run.counted('half', name):.2f}" for name in ("inference", "step"))
    time = f"{run.by_pass['half', 'step']['ratio']:.2f}"
    plans = (ROOT / "docs" / "plans.md").read_text()
    assert f"| {counted} | the tower of ViT-B/16 alone" in plans
    assert f"| {counted_step} | the whole step of ViT-B/16" in plans
    assert f"| {time} | the measured time of ViT-B/16's whole step" in plans
    assert f"A step of ViT-B/16 takes [{time} of the time]" in (ROOT / "README.md").read_text()


def test_how_many_are_checked() -> None:
    numbers = [n for says in PAGES.values() for s in says() for n in re.findall(NUMBER, s)]
    assert len(numbers) > 100


@pytest.mark.parametrize("page", PAGES)
def test_a_wrong_number_is_found(page: str) -> None:
    """Whichever number of a sentence of the page is changed by one in its last digit."""
    text, sentences = flat((ROOT / page).read_text()), list(PAGES[page]())
    for sentence in sentences:
        for found in re.finditer(NUMBER, sentence):
            number = found[0]
            digit = max(place for place, letter in enumerate(number) if letter.isdigit())
            wrong = number[:digit] + str((int(number[digit]) + 1) % 10) + number[digit + 1 :]
            changed = sentence[: found.start()] + wrong + sentence[found.end() :]
            assert missing(text.replace(sentence, changed), sentences) == [sentence]
