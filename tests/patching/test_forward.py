"""What holds for one forward, and what is handed on to the replicas of `DataParallel`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elip_plugin import ElipConfig, apply
from elip_plugin.core.guide import TextQueries
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.calls import thread
from elip_plugin.patching.description import TowerShape
from elip_plugin.patching.install import find_pruner
from elip_plugin.patching.progress import TrainingProgress
from elip_plugin.patching.pruner import INHERITED, Pruner


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


def pruner_of(module: nn.Module, **fields: Any) -> Pruner:
    config = ElipConfig.from_mapping({"preset": "fast", "text_weight": 0.0, **fields})
    return Pruner(config, TowerShape(64, 12, 32), TrainingProgress(config, module))


def test_what_is_asked_for_is_handed_to_a_replica() -> None:
    module, replica = nn.Linear(2, 2), nn.Linear(2, 2)
    pruner = pruner_of(module)
    pruner.hand_to(replica)
    assert INHERITED not in vars(replica) and pruner.decide(replica).level == 1
    with pruner.asked(enabled=False):
        pruner.hand_to(replica)
    # The replica's thread has nothing open itself; what it opens comes on top.
    assert thread.innermost is None and pruner.decide(module).level == 1
    assert pruner.decide(replica).level == 0
    with pruner.asked(replica, eval_mode="image"):
        assert pruner.decide(replica).level == 0


@pytest.mark.parametrize("what", ["guide", "trace"])
def test_a_guide_or_a_trace_is_not_handed_to_a_replica(what: str) -> None:
    pruner, replica = pruner_of(nn.Linear(2, 2)), nn.Linear(2, 2)
    opened = pruner.traced() if what == "trace" else pruner.asked(guide=torch.zeros(2, 32))
    message = f"a {what} is open around a DataParallel model, which splits its batch"
    with opened, pytest.raises(UnsupportedModelError, match=message):
        pruner.hand_to(replica)
    assert INHERITED not in vars(replica) and thread.innermost is None
