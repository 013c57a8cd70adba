"""How many Python functions of this package a training forward of LAVIS' models calls."""

from __future__ import annotations

import pytest
from test_call_count import own_calls

pytest.importorskip("lavis")

from lavis_family import (
    pruned,
    run,
)


# Each attention of ALBEF is fused, in the online tower and in what is looked through.
@pytest.mark.parametrize(("arch", "most"), [("albef_pretrain", 152), ("clip", 95)])
def test_training_forward(arch: str, most: int) -> None:
    model = pruned(arch)
    counts = own_calls(lambda: run(arch, model))
    assert 0 < sum(counts.values()) <= most, counts
