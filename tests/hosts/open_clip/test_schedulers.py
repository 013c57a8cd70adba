"""OpenCLIP's own schedules of the learning rate report the training's progress, in any loop."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import recorded_lengths

from elip_plugin import apply

pytest.importorskip("open_clip")
scheduler = pytest.importorskip("open_clip_train.scheduler")

FULL, PLANNED = [65] * 12, [65] * 2 + [59] * 2 + [43] * 6 + [27] * 2
STEPS = 4
MAKERS = {
    "cosine_lr": scheduler.cosine_lr,
    "const_lr": scheduler.const_lr,
    "const_lr_cooldown": functools.partial(scheduler.const_lr_cooldown, cooldown_steps=1),
}

Pairs = tuple[torch.Tensor, torch.Tensor]
pytestmark = pytest.mark.filterwarnings("error:this ELIP config has a schedule")


def lengths_of(model: Any, pairs: Pairs) -> list[int]:
    with recorded_lengths(model.visual.transformer.resblocks) as lengths:
        model(*pairs)["image_features"].square().mean().backward()
    return lengths


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("maker", MAKERS)
def test_each_schedule_reports_steps_with_any_optimizer(
    maker: str, optimizer: Any, tiny_clip: Callable[..., Any], pairs: Pairs
) -> None:
    model = tiny_clip()
    apply(model, {"preset": "fast", "final_unpruned": 0.5})
    made = optimizer(model.parameters(), lr=1e-3)
    adjust = MAKERS[maker](made, 1e-3, 2, STEPS)
    plain = inspect.unwrap(getattr(scheduler, maker))
    options = {"cooldown_steps": 1} if "cooldown" in maker else {}
    expected = plain(torch.optim.SGD([torch.zeros(1)]), 1e-3, 2, STEPS, **options)
    for step in range(STEPS):
        assert adjust(step) == expected(step) == made.param_groups[0]["lr"]
        for _ in range(2):  # accumulation: forwards do not count
            assert lengths_of(model, pairs) == (PLANNED if step < STEPS / 2 else FULL)
        made.step()
    adjust(1)  # a resume: the step says where the training is, not the number of calls
    assert lengths_of(model, pairs) == PLANNED


def test_two_models_in_one_process_follow_their_own_schedules(
    tiny_clip: Callable[..., Any], pairs: Pairs
) -> None:
    one, two, other = tiny_clip(), tiny_clip(1), tiny_clip(2)
    for model in (one, two):
        apply(model, {"preset": "fast", "final_unpruned": 0.5})
    first, second = (
        scheduler.cosine_lr(torch.optim.SGD(model.parameters(), lr=1e-3), 1e-3, 2, steps)
        for model, steps in ((one, 4), (two, 8))
    )
    unpruned = scheduler.const_lr(torch.optim.SGD(other.parameters(), lr=1e-3), 1e-3, 2, 4)
    for step in range(4):
        first(step)
        second(step)
        unpruned(3)
        assert lengths_of(one, pairs) == (PLANNED if step < 2 else FULL)
        assert lengths_of(two, pairs) == PLANNED
    second(4)
    assert lengths_of(two, pairs) == FULL


def test_the_functions_look_like_the_hosts_and_are_wrapped_once() -> None:
    from elip_plugin.hosts.open_clip import schedulers

    for name in schedulers.SCHEDULERS:
        before = getattr(scheduler, name)
        schedulers.install(scheduler)
        assert getattr(scheduler, name) is before
        assert before.__name__ == name and "steps" in inspect.signature(before).parameters
        assert not hasattr(before.__wrapped__, "__wrapped__")
