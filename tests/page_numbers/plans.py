"""What docs/plans.md says by the logs."""

from __future__ import annotations

from collections.abc import Iterator

from elip_plugin import ElipConfig, plan
from page_numbers.logs import HALF, rows, step


def sentences() -> Iterator[str]:
    config = ElipConfig.preset("half")
    counted = plan(config, num_patches=196, depth=12).forward_cost(768)
    yield f"| {counted:.2f} | the same tower by the tokens that enter each block"
    yield f"| {step(HALF)} | the whole step of the quality report's small CLIP"
    yield f"| {rows()[HALF, 'steps'].measured:.2f} | the measured time of that small step |"


NO_LOG = ("| 0.49 |", "| 0.56 |", "| 0.59 | the measured time of ViT")
"""Times and counts that `test_numbers.py` compares with docs/speed.md."""
