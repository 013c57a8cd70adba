"""What may reduce the tokens at a stage: ELIP, and published methods to compare it with.

Each is one file, written from its paper. They remove the same number of token-layers from the
same config, so that only the choice differs.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from elip_plugin.reducers import elip, evit, random
from elip_plugin.reducers.base import Moment

STAGES: dict[str, Callable[[Tensor, Moment], Tensor]] = {
    "elip": elip.reduce_stage,
    "evit": evit.reduce_stage,
    "random": random.reduce_stage,
}
"""Reducers that work between two blocks; "tome" works inside every block, see `tome.py`."""
