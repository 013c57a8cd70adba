"""What docs/plans.md says by the logs."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import speed
from elip_plugin import ElipConfig, plan
from page_numbers import pretrained
from page_numbers.logs import HALF, THIRD, step, time_of_step


def sentences() -> Iterator[str]:
    run = speed.read("vit-b-16")

    def row(half: str, third: str, meaning: str) -> str:
        return f"| {half} | {third} | {meaning}"

    def counted(name: str) -> str:
        made = plan(ElipConfig.preset(name), num_patches=196, depth=12)
        return f"{made.forward_cost(768):.2f}"

    def ran(name: str, what: str) -> str:
        return f"{run.counted(name, what):.2f}"

    inference = [ran(name, "inference") for name in ("half", "third")]
    assert inference == [counted(name) for name in ("half", "third")]
    yield row(*inference, "the image tower of ViT-B/16")
    yield row(*(ran(n, "step") for n in ("half", "third")), "the whole training step of ViT-B/16")
    yield row(step(HALF), step(THIRD, "operations"), "the whole step of the small CLIPs")
    yield row(*map(time_of_step, ("half", "third")), "the measured time of the whole step")
    short, long = (pretrained.tuned("ward 0.7", steps) for steps in (100, 300))
    tuned_half = pretrained.tuned("half", 100)
    yield (
        f"was at {short[0]} of unpruned after as many steps, though {short[1]} after as many "
        f"operations; in trainings three times as long at {long[0]} and {long[1]}; by `half` at "
        f"{tuned_half[0]} and {tuned_half[1]}"
    )


"""Counted by `elip plan`."""
