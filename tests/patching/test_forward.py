"""What holds for one forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from elip_plugin import apply
from elip_plugin.core.guide import TextQueries
from elip_plugin.patching.install import find_pruner


@pytest.mark.filterwarnings("ignore:the text that chooses")
def test_the_text_side_reads_tokens_once_in_each_forward(tiny_clip: Any) -> None:
    model, read = tiny_clip(), []

    def further(tokens: Tensor) -> Tensor:
        read.append(tokens.shape)
        return torch.randn(2, 5, 32)

    handle = apply(model, {"reducer": "similarity", "preset": "fast"})
    images, first = torch.randn(2, 3, 64, 64), torch.randn(2, 4, 32)
    assert len(handle.plan.stages) == 3
    with find_pruner(model).asked(guide=TextQueries(first, further)):
        for forwards in (1, 2):
            model.encode_image(images)
            assert read == [(2, 65, 32)] * forwards  # the tokens that enter the first stage
