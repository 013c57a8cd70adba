"""Pruning over the course of training, told by the optimizer's own steps."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import recorded_lengths

from elip_plugin import ElipConfig, Stage, apply, find_handle
from elip_plugin.errors import ConfigError
from elip_plugin.patching.progress import LEVELS, config_at, level_at

FULL, PLANNED = [65] * 12, [65] * 2 + [59] * 2 + [43] * 6 + [27] * 2
SCHEDULE = {"preset": "fast", "warm_in": 0.5, "full_finish": 0.2, "total_steps": 10}

Pairs = tuple[torch.Tensor, torch.Tensor]


def scheduled(warm_in: float = 0.0, full_finish: float = 0.0) -> ElipConfig:
    return ElipConfig.from_mapping(
        {"warm_in": warm_in, "full_finish": full_finish, "total_steps": 100}
    )


def test_levels_rise_in_five_steps_and_end_with_all_tokens() -> None:
    config = scheduled(0.4, 0.2)
    levels = [level_at(step / 100, config) for step in range(100)]
    assert levels == [0.0] * 10 + [0.25] * 10 + [0.5] * 10 + [0.75] * 10 + [1.0] * 40 + [0.0] * 20
    assert len(set(levels)) == LEVELS + 1
    assert level_at(0.0, ElipConfig.preset("fast")) == 1.0


def test_a_level_removes_its_share() -> None:
    config = ElipConfig((Stage(1, 1, 0.5), Stage(2, 1, 8)))
    half = config_at(0.5, config, num_patches=64)
    assert [stage.keep for stage in half.stages] == [0.75, 36]
    assert config_at(1.0, config, 64) is config


def blocks(model: Any) -> Any:
    return model.visual.transformer.resblocks


def train(model: Any, optimizer: Any, pairs: Pairs, steps: int) -> list[list[int]]:
    seen = []
    for _ in range(steps):
        with recorded_lengths(blocks(model)) as lengths:
            loss = model(*pairs)["image_features"].square().mean()
        seen.append(lengths[:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return seen


def make(tiny_clip: Callable[..., Any], config: Any = None) -> tuple[Any, Any]:
    model = tiny_clip()
    apply(model, config or SCHEDULE)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-4)


def test_a_training_passes_its_levels(tiny_clip: Callable[..., Any], pairs: Pairs) -> None:
    model, optimizer = make(tiny_clip)
    seen = train(model, optimizer, pairs, 12)
    assert seen[0] == seen[1] == FULL  # shares 0.0 and 0.1: level 0
    assert seen[5] == seen[6] == seen[7] == PLANNED
    assert seen[8:] == [FULL] * 4  # the finish, and past the end of it
    sums = [sum(lengths) for lengths in seen[:6]]
    assert sums == sorted(sums, reverse=True) and len(set(sums)) == LEVELS + 1


def test_a_resumed_training_goes_on_where_it_was(
    tiny_clip: Callable[..., Any], pairs: Pairs
) -> None:
    model, optimizer = make(tiny_clip)
    uninterrupted = train(model, optimizer, pairs, 7)
    model, optimizer = make(tiny_clip)
    first = train(model, optimizer, pairs, 4)
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    model, optimizer = make(tiny_clip)
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    assert first + train(model, optimizer, pairs, 3) == uninterrupted


def test_evaluation_and_other_models_have_no_schedule(
    tiny_clip: Callable[..., Any], pairs: Pairs
) -> None:
    model, optimizer = make(tiny_clip, {**SCHEDULE, "eval": "image"})
    other, _ = make(tiny_clip)
    train(model, optimizer, pairs, 6)
    with recorded_lengths(blocks(other)) as lengths:
        other(*pairs)
    assert lengths == FULL  # its own optimizer has made no step
    for steps in (0, 3):
        train(model, optimizer, pairs, steps)
        with recorded_lengths(blocks(model)) as lengths:
            model.eval().encode_image(pairs[0])
        model.train()
        assert lengths == PLANNED


def test_copies_follow_their_own_optimizer(tiny_clip: Callable[..., Any], pairs: Pairs) -> None:
    model, optimizer = make(tiny_clip)
    train(model, optimizer, pairs, 6)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        fresh = torch.optim.AdamW(copied.parameters())
        assert train(copied, fresh, pairs, 2)[1] == FULL
    with recorded_lengths(blocks(model)) as lengths:
        model(*pairs)
    assert lengths == PLANNED


def test_removal_leaves_nothing(tiny_clip: Callable[..., Any], pairs: Pairs) -> None:
    model, optimizer = make(tiny_clip)
    find_handle(model).remove()
    assert train(model, optimizer, pairs, 1) == [FULL]


@pytest.mark.parametrize("reducer", ["elip", "evit", "random"])
def test_accumulation_counts_the_optimizers_steps(
    reducer: str, tiny_clip: Callable[..., Any], pairs: Pairs
) -> None:
    config = {"reducer": reducer, "preset": "fast", "full_finish": 0.5, "total_steps": 4}
    model, optimizer = make(tiny_clip, config)
    for step in range(4):
        for _ in range(3):  # forwards per step
            with recorded_lengths(blocks(model)) as lengths:
                model(*pairs)["image_features"].square().mean().backward()
            assert lengths == (PLANNED if step < 2 else FULL)
        optimizer.step()


def test_an_optimizer_without_a_count_is_refused(
    tiny_clip: Callable[..., Any], pairs: Pairs
) -> None:
    model, _ = make(tiny_clip)
    sgd = torch.optim.SGD(model.parameters(), lr=1e-3)
    with pytest.raises(ConfigError, match="SGD keeps none: use Adam"):
        train(model, sgd, pairs, 1)
    other = tiny_clip()  # an SGD elsewhere is nobody's business
    train(other, torch.optim.SGD(other.parameters(), lr=1e-3), pairs, 1)


def test_lavis_twins_keep_the_students_time() -> None:
    pytest.importorskip("lavis")
    import lavis_family as family

    model = family.twin(
        "albef_pretrain",
        elip={"preset": "fast", "full_finish": 0.5, "total_steps": 2, "prune_momentum": True},
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    seen = []
    for _ in range(2):
        towers = [*model.visual_encoder.blocks, *model.visual_encoder_m.blocks]
        with recorded_lengths([block.mlp for block in towers]) as lengths:
            family.step("albef_pretrain", model)
        seen.append(lengths[:])
        optimizer.step()
    assert seen[1] == [17] * 24
    assert seen[0][:12] == seen[0][12:] != seen[1][:12]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"warm_in": 0.1}, "need total_steps"),
        ({"warm_in": 1.5, "total_steps": 5}, "warm_in must be a share"),
        ({"warm_in": 0.6, "full_finish": 0.5, "total_steps": 5}, "must not exceed 1 together"),
        ({"total_steps": 0}, "total_steps must be"),
    ],
)
def test_faults(mapping: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ElipConfig.from_mapping(mapping)
