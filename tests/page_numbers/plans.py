"""What docs/plans.md says by the logs."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import speed
from elip_plugin import ElipConfig, plan
from page_numbers.logs import HALF, rows, step, time_of_step


def sentences() -> Iterator[str]:
    config = ElipConfig.preset("half")
    counted = plan(config, num_patches=196, depth=12).forward_cost(768)
    yield f"| {counted:.2f} | the same tower by the tokens that enter each block"
    yield f"| {step(HALF)} | the whole step of the quality report's small CLIP"
    yield f"| {rows()[HALF, 'steps'].measured:.2f} | the measured time of that small step |"
    run = speed.read("vit-b-16")
    yield f"| {run.counted('half', 'inference'):.2f} | the tower of ViT-B/16 alone"
    yield f"| {run.counted('half', 'step'):.2f} | the whole step of ViT-B/16, text tower"
    yield f"| {time_of_step('half')} | the measured time of ViT-B/16's whole step, batch 8 |"
