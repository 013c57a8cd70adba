"""What docs/method.md says by the logs."""

from __future__ import annotations

from collections.abc import Iterator

from elip_plugin import ElipConfig, plan


def sentences() -> Iterator[str]:
    paper, fast = (
        plan(ElipConfig.preset(name), num_patches=196, depth=12) for name in ("paper", "fast")
    )
    yield (
        f"the plan `paper` takes {paper.forward_cost(768):.2f} of a forward and "
        f"{paper.train_cost(768):.2f} of a training step, `fast` {fast.forward_cost(768):.2f} and "
        f"{fast.train_cost(768):.2f}."
    )
    yield f"fall to {1 - paper.removed:.2f} with both."


NO_LOG = ("*t* = 0.2 is the text weight",)
"""A default."""
