"""The laws of a host for every vision transformer that is found by itself."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from conftest import recorded_lengths
from hosts.anyvit.vits import CASES, PATCHES, WIDTH, images, make
from torch import Tensor

import elip_plugin
from elip_plugin.config import ElipConfig
from elip_plugin.errors import GuideError, UnsupportedModelError
from elip_plugin.hosts.anyvit.check import check
from elip_plugin.hosts.registry import describe
from elip_plugin.patching.install import install
from elip_plugin.reducers import reducers

NEW = {"preset": "fast", "text_weight": 0.5}


def config_of(reducer: str) -> dict[str, Any]:
    preset = {} if hasattr(reducers()[reducer], "input_keep") else {"preset": "fast"}
    return {**preset, "reducer": reducer}


def state_of(model: Any) -> dict[str, Any]:
    """All that lies on a model: classes, attributes, weights."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        found[f"{name}:class"] = type(module)
        found |= {f"{name}.{k}": v for k, v in vars(module).items() if not isinstance(v, dict)}
    return found | {k: v.clone() for k, v in model.state_dict().items()}


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    if first.keys() != second.keys():
        return False
    equal = (
        torch.equal(a, second[k]) if isinstance(a, Tensor) else a is second[k] or a == second[k]
        for k, a in first.items()
    )
    return all(equal)


@pytest.mark.parametrize("name", CASES)
def test_describing_changes_nothing(name: str) -> None:
    model = make(name)
    before, random = state_of(model), torch.get_rng_state()
    description = describe(model)
    assert same(state_of(model), before)
    assert torch.equal(torch.get_rng_state(), random)
    shape = description.tower.shape
    assert (shape.num_patches, shape.depth, shape.width) == (PATCHES, 12, WIDTH)
    assert shape.prefix == CASES[name].prefix
    assert shape.class_query == (shape.prefix > 0)
    assert check(description.tower) < 1e-12


@pytest.mark.parametrize("name", CASES)
def test_disabled_evaluated_and_removed_are_the_base_model(name: str) -> None:
    case, model, x = CASES[name], make(name), images()
    before, state = case.encode(model, x), state_of(model)
    handle = elip_plugin.apply(model, NEW)
    assert list(model.state_dict()) == [k for k in state if k in model.state_dict()]
    with handle.guide(torch.randn(2, WIDTH)):
        pruned = case.encode(model, x)
    assert pruned.shape == before.shape and not torch.equal(pruned, before)
    with handle.disabled():
        assert torch.equal(case.encode(model, x), before)
    assert torch.equal(case.encode(model.eval(), x), before)
    handle.remove()
    assert same(state_of(model.train()), state)
    assert torch.equal(case.encode(model, x), before)


@pytest.mark.parametrize("name", CASES)
def test_each_block_has_the_planned_tokens(name: str) -> None:
    case, model = CASES[name], make(name)
    described = describe(model)
    for reducer in reducers():
        if reducer == "similarity" and not described.tower.norm:
            continue
        install(described, ElipConfig.from_mapping(config_of(reducer)))
        handle = elip_plugin.find_handle(model)
        guide, x = handle.guide(torch.randn(2, WIDTH)), images()
        with guide, recorded_lengths(case.blocks(model), case.dim) as lengths:
            case.encode(model, x).square().sum().backward()
        assert lengths == list(handle.plan.tokens)
        assert lengths[-1] < PATCHES + case.prefix
        for block in case.blocks(model):
            for weight in block.parameters():
                assert weight.grad is not None
        handle.remove()
