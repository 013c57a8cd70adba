"""What research/quality.md says by the logs."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import mean

from benchmarks.board import report
from benchmarks.board.measure import ALL
from benchmarks.board.variants import REFERENCE
from benchmarks.photos.questions import TOP1
from benchmarks.quality.questions import MRR
from page_numbers.logs import (
    HALF,
    LEVEL,
    LEVEL_AT_STEPS,
    LOWRES,
    THIRD,
    answered,
    asked,
    bare,
    emojis,
    gap,
    interval,
    photographs,
    rows,
    said,
    span,
    step,
    step_on_photographs,
)

OTHERS = ("half", "lowres", "level", "fast", "paper")
"""The presets that `third` is compared with."""


def sentences() -> Iterator[str]:
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
    third, ahead = gap(THIRD, "operations"), "Does the preset third score better than"
    yield (
        f"**`third`** ({step(THIRD, 'operations')} of the step) gains {bare(third)} at equal "
        f"operations ({third.seeds} seeds) and is ahead of "
        + ", ".join(f"`{name}` by {bare(asked(f'{ahead} {name}'))}" for name in OTHERS)
        + f". At equal steps it is at {said(gap(THIRD))} ({gap(THIRD).seeds} seeds)."
    )
    level = gap(LEVEL, "operations")
    yield (
        f"**`level`** ({step(LEVEL, 'operations')}) gains {bare(level)} at equal operations "
        f"({level.seeds} seeds)."
    )
    yield from on_photographs()
    paper, fast = gap("paper"), gap("fast")
    yield (
        f"**`paper`** ({step('paper')} of the step) loses {bare(paper)} at equal steps "
        f"({paper.seeds} seeds) and is behind `half` on those seeds, by "
        f"{bare(asked('Does the preset half score better than the preset paper'))}"
    )
    yield f"**`fast`** ({step('fast')}) loses {bare(fast)} ({fast.seeds} seeds)"
    more = [gap(name, "operations") for name in ("paper", "fast")]
    assert {found.seeds for found in more} == {5}
    yield (
        f"At equal operations `paper` is at {said(more[0])} and `fast` at {said(more[1])} "
        f"(5 seeds each)."
    )
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


def on_photographs() -> Iterator[str]:
    level = answered(LEVEL_AT_STEPS)
    yield (
        f"**`level`** ({step_on_photographs(LEVEL)} of the step) is at {said(level)} at equal "
        f"steps ({level.seeds} seeds that took no part in its choice; they were added in three "
        f"parts, so the interval is one of {interval(LEVEL_AT_STEPS)}), "
        f"where `half` is at "
        f"{said(gap(HALF, found=photographs, measure=TOP1))}. At equal operations it gains "
        f"{bare(answered('Is training with the preset level better'))}"
    )
    third, ahead = answered("Is training with the preset third"), "Does the preset third score"
    more = ", ".join(
        f"{bare(answered(f'{ahead} better than {name}'))} more than `{name}`" for name in OTHERS
    )
    at_steps = answered("The preset third: as good as")
    yield (
        f"**`third`** ({step_on_photographs(THIRD, 'operations')}) gains {bare(third)} at equal "
        f"operations ({third.seeds} seeds that took no part in its choice), {more}. At equal steps "
        f"it is at {said(at_steps)} ({at_steps.seeds} seeds)."
    )
    fast, paper = (
        gap(name, "operations", found=photographs, measure=TOP1) for name in ("fast", "paper")
    )
    assert fast.seeds == paper.seeds
    yield (
        f"**`fast`** ({step_on_photographs('fast', 'operations')}) and **`paper`** "
        f"({step_on_photographs('paper', 'operations')}) are at {said(fast)} and {said(paper)} at "
        f"equal operations ({fast.seeds} seeds)."
    )
    merging, random = answered("Does merging by ToMe"), answered("Half of the patches at the input")
    assert merging.seeds == random.seeds
    yield (
        f"**Merging beats dropping** here too: `half` is ahead of a random half at the input, at "
        f"the same operations and steps, by {bare(merging)} points ({merging.seeds} seeds). That "
        f"random half loses {bare(random)} at equal steps."
    )
    lowres = answered("Does the preset lowres score better than half")
    yield (
        f"**`lowres`** ({step_on_photographs(LOWRES)}) gains "
        f"{bare(answered('Is the preset lowres better than unpruned'))} at equal operations and is "
        f"behind `half` there by {bare(lowres)} ({lowres.seeds} seeds)"
    )


NO_LOG = ("(+0.1 and 0.0; not in the log",)
"""Two trainings from before the log, as the page says."""
