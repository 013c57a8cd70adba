"""Pruning over the course of training, by the progress that whoever trains reports."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from recorders import recorded_lengths

from elip_plugin import ElipConfig, Stage, apply, find_handle
from elip_plugin.errors import ConfigError
from elip_plugin.patching.progress import LEVELS, config_at, level_at, update_for

FULL, PLANNED = [65] * 12, [65] * 2 + [59] * 2 + [43] * 6 + [27] * 2
SCHEDULE = {"preset": "fast", "warmup": 0.5, "final_unpruned": 0.2}
TOTAL = 10

Pairs = tuple[torch.Tensor, torch.Tensor]


def test_levels_rise_in_five_steps_and_end_with_all_tokens() -> None:
    config = ElipConfig.from_mapping({"warmup": 0.4, "final_unpruned": 0.2})
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


def lengths_of(model: Any, pairs: Pairs) -> list[int]:
    """Token counts of a training forward; the gradients stay."""
    with recorded_lengths(blocks(model)) as lengths:
        model(*pairs)["image_features"].square().mean().backward()
    return lengths


def train(model: Any, pairs: Pairs, steps: range) -> list[list[int]]:
    """An own loop, which reports its progress before each forward."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    seen = []
    for step in steps:
        find_handle(model).update_progress(step, TOTAL)
        seen.append(lengths_of(model, pairs))
        optimizer.step()
        optimizer.zero_grad()
    return seen


def make(tiny_clip: Callable[..., Any], config: Any = None, seed: int = 0) -> Any:
    model = tiny_clip(seed)
    apply(model, config or SCHEDULE)
    return model


def test_an_own_loop_passes_the_levels_and_resumes(
    tiny_clip: Callable[..., Any], pairs: Pairs
) -> None:
    model = make(tiny_clip)
    seen = train(model, pairs, range(12))
    assert seen[0] == seen[1] == FULL  # shares 0.0 and 0.1: level 0
    assert seen[5] == seen[6] == seen[7] == PLANNED
    assert seen[8:] == [FULL] * 4  # all tokens at the end, and past it
    sums = [sum(lengths) for lengths in seen[:6]]
    assert sums == sorted(sums, reverse=True) and len(set(sums)) == LEVELS + 1
    assert train(make(tiny_clip), pairs, range(4, 8)) == seen[4:8]  # a process of its own


def test_steps_of_a_training_are_below_2_to_the_63(tiny_clip: Callable[..., Any]) -> None:
    model = make(tiny_clip)
    find_handle(model).update_progress(0, (1 << 63) - 1)
    for step, total in ((0, 1 << 63), (1 << 63, TOTAL)):
        with pytest.raises(ConfigError, match="training progress must be"):
            find_handle(model).update_progress(step, total)


def test_without_reports_it_warns_once_and_stays_at_the_first_step(
    tiny_clip: Callable[..., Any], pairs: Pairs
) -> None:
    model = make(tiny_clip)
    with pytest.warns(UserWarning, match=r"call handle\.update_progress\(step, total_steps\)"):
        assert lengths_of(model, pairs) == FULL
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lengths_of(model, pairs) == FULL
        make(tiny_clip, "fast")(*pairs)  # no schedule, no reports needed
        find_handle(model).update_progress(5, TOTAL)
        assert lengths_of(model, pairs) == PLANNED


def test_evaluation_and_other_models_have_no_schedule(
    tiny_clip: Callable[..., Any], pairs: Pairs
) -> None:
    model = make(tiny_clip, {**SCHEDULE, "eval_mode": "image"})
    other = make(tiny_clip)
    for step in (0, 5, 9):
        find_handle(model).update_progress(step, TOTAL)
        find_handle(other).update_progress(0, TOTAL)
        assert lengths_of(model, pairs) == (PLANNED if step == 5 else FULL)
        assert lengths_of(other, pairs) == FULL
        with recorded_lengths(blocks(model)) as lengths:
            model.eval().encode_image(pairs[0])
        model.train()
        assert lengths == PLANNED


def test_a_command_finds_the_towers_by_what_it_trains(
    tiny_clip: Callable[..., Any], pairs: Pairs
) -> None:
    """Several models in one process, copies included: each follows its own weights."""
    model, other = make(tiny_clip), make(tiny_clip, seed=1)
    update_for(model.parameters(), 5, TOTAL)
    update_for([other.visual.proj.detach()], 9, TOTAL)  # shares memory, and is no weight
    assert lengths_of(model, pairs) == PLANNED
    with pytest.warns(UserWarning, match="reports no progress"):
        assert lengths_of(other, pairs) == FULL
    update_for([other.logit_scale], 5, TOTAL)  # not of the tower
    assert lengths_of(other, pairs) == FULL
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert lengths_of(copied, pairs) == PLANNED  # as far as the model was
        update_for([copied.visual.proj], 0, TOTAL)  # one weight is enough
        assert lengths_of(copied, pairs) == FULL
        assert lengths_of(model, pairs) == PLANNED
    find_handle(model).remove()
    update_for(model.parameters(), 0, TOTAL)
    assert lengths_of(model, pairs) == FULL


def test_a_model_that_is_gone_is_not_kept(tiny_clip: Callable[..., Any]) -> None:
    tower = weakref.ref(make(tiny_clip).visual)
    gc.collect()
    assert tower() is None


@pytest.mark.parametrize("reducer", ["elip", "evit", "random", "tome"])
def test_each_reducer_follows_a_schedule(
    reducer: str, tiny_clip: Callable[..., Any], pairs: Pairs
) -> None:
    model = make(tiny_clip, {"reducer": reducer, "preset": "fast", "warmup": 0.5})
    planned = list(find_handle(model).plan.tokens)
    seen = train(model, pairs, range(0, 6, 2))
    assert seen[0] == FULL and sum(FULL) > sum(seen[1]) > sum(seen[2])
    assert seen[2] != planned
    assert train(model, pairs, range(5, 6)) == [planned]


def test_a_schedule_counts_what_patch_dropout_leaves(
    tiny_clip: Callable[..., Any], pairs: Pairs
) -> None:
    model = tiny_clip(patch_dropout=0.5)
    apply(model, SCHEDULE)
    half = [33] * 2 + [28 + 2] * 2 + [20 + 2] * 6 + [12 + 2] * 2
    assert train(model, pairs, range(0, 6, 5)) == [[33] * 12, half]


def test_lavis_momentum_encoders_follow_the_models_progress() -> None:
    pytest.importorskip("lavis")
    import lavis_family as family

    model = family.pruned(
        "albef_pretrain", elip={"preset": "fast", "final_unpruned": 0.5, "prune_momentum": True}
    )
    seen = []
    for step in range(2):
        update_for([p for p in model.parameters() if p.requires_grad], step, 2)
        towers = [*model.visual_encoder.blocks, *model.visual_encoder_m.blocks]
        with recorded_lengths([block.mlp for block in towers]) as lengths:
            family.step("albef_pretrain", model)
        seen.append(lengths)
    assert seen[1] == [17] * 24
    assert seen[0][:12] == seen[0][12:] != seen[1][:12]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"warmup": 1.5}, "warmup must be a number"),
        ({"warmup": 0.6, "final_unpruned": 0.5}, "must not exceed 1 together"),
    ],
)
def test_faults(mapping: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ElipConfig.from_mapping(mapping)


@pytest.mark.parametrize(("step", "total"), [(-1, 10), (0, 0)])
def test_progress_that_is_none_is_refused(
    step: int, total: int, tiny_clip: Callable[..., Any]
) -> None:
    with pytest.raises(ConfigError, match=rf"got {step} of {total}"):
        find_handle(make(tiny_clip)).update_progress(step, total)
