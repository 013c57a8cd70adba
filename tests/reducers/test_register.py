"""A reducer of a script or a notebook: registered, used with its options, replaced, refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import elip_plugin
from elip_plugin import reducers
from elip_plugin.core.select import Selection, select
from elip_plugin.errors import ConfigError
from elip_plugin.reducers import PlannedStage, Reducer, StageContext, find_reducer


@pytest.fixture(autouse=True)
def _nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(reducers, "_registered", {})
    yield
    reducers.reducers.cache_clear()


@pytest.mark.parametrize("name", ["tomme", "", None, ["tome"]])
def test_a_name_that_is_none_is_refused(name: Any) -> None:
    with pytest.raises(ConfigError, match="is not known"):
        find_reducer(name)


def define() -> type[Reducer]:
    """Define a reducer, as a cell of a notebook does, each time anew."""

    @elip_plugin.register_reducer
    @dataclass(frozen=True)
    class Longest(Reducer):
        """Keep the tokens with the largest norm, or with the smallest."""

        name = "longest"

        sign: int = 1

        def option_faults(self) -> list[str]:
            return [] if self.sign in (-1, 1) else [f"sign must be -1 or 1, got {self.sign}"]

        def decide(self, x: Tensor, stage: PlannedStage, context: StageContext) -> Selection:
            norms = x[:, context.prefix :].norm(dim=-1)
            return select(norms.pow(self.sign), stage.keep)

    return Longest


def kept(model: Any, images: Tensor, **options: Any) -> Tensor:
    config = {"reducer": {"name": "longest", **options}, "eval_mode": "image"}
    handle = elip_plugin.apply(model, config)
    with handle.trace() as trace:
        model.encode_image(images)
    handle.remove()
    return trace.stages[0].kept


def test_it_prunes_by_its_option(tiny_clip: Any) -> None:
    define()
    model, images = tiny_clip().eval(), torch.randn(2, 3, 64, 64)
    longest, shortest = kept(model, images), kept(model, images, sign=-1)
    tokens: list[Tensor] = []
    block = model.visual.transformer.resblocks[2]  # the first stage of its default stages
    hook = block.register_forward_pre_hook(lambda _, given: tokens.append(given[0]))
    model.encode_image(images)
    hook.remove()
    norms = tokens[0][:, 1:].norm(dim=-1)
    count = longest.shape[1]
    assert torch.equal(longest, norms.topk(count).indices.sort().values)
    assert torch.equal(shortest, (-norms).topk(count).indices.sort().values)
    with pytest.raises(ConfigError, match="sign must be -1 or 1, got 2"):
        elip_plugin.ElipConfig.from_mapping({"reducer": {"name": "longest", "sign": 2}})


def test_a_cell_that_runs_again_takes_its_place() -> None:
    first = define()
    config = elip_plugin.ElipConfig.from_mapping({"reducer": "longest"})
    assert type(config.reducer) is first
    second = define()
    assert second is not first
    again = elip_plugin.ElipConfig.from_mapping({"reducer": "longest"})
    assert type(find_reducer("longest")) is type(again.reducer) is second
    assert type(config.reducer) is first  # a config that is there keeps what it was made of


def test_refused() -> None:
    define()

    class Longest(Reducer):  # another class of that name
        name = "longest"

    class Taken(Reducer):
        name = "tome"

    class Bare(Reducer):
        name = "bare"
        width: int = 3

    class Named(Reducer):
        name = "named"
        presets = {"mine": {"stages": []}}  # noqa: RUF012

    class Nameless(Reducer):
        pass

    before = dict(reducers.reducers())
    for cls, message in (
        (Longest, "takes the name 'longest', which .*test_register has"),
        (Taken, r"takes the name 'tome', which elip_plugin\.reducers\.tome has"),
        (Bare, r"has options and is no dataclass: decorate it with @dataclass\(frozen=True\)"),
        (Named, "has presets, which only a reducer of an installed package can add"),
        (Nameless, "has no name: give the class an attribute `name`"),
        (find_reducer("tome"), "is no Reducer: give a subclass"),
    ):
        with pytest.raises(ConfigError, match=message):
            elip_plugin.register_reducer(cls)  # type: ignore[type-var]
    assert reducers.reducers() == before
