"""A pruned tower learns its own unpruned features."""

from __future__ import annotations

import gc
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import elip_plugin
from elip_plugin.errors import ConfigError, DataError

pytest.importorskip("open_clip")

PICTURES = torch.nn.functional.interpolate(
    torch.randn(96, 3, 20, 20, generator=torch.Generator().manual_seed(0)), (64, 64), mode="bicubic"
)
STEPS = 60


def load(places: Any) -> Tensor:
    return PICTURES[list(places)]


@pytest.fixture
def made() -> Any:
    stages = [{"block": 0, "lookahead": 1, "keep": 0.3}]
    strong = {"reducer": "ward", "stages": stages, "reference_depth": 12, "eval_mode": "image"}
    return elip_plugin.create("ViT-tiny", elip_plugin.ElipConfig.from_mapping(strong))


def features(made: Any, images: Tensor, pruned: bool = True) -> Tensor:
    handle = elip_plugin.find_handle(made.model)
    with torch.no_grad():
        if pruned:
            return made.encode_image(images)
        with handle.disabled():
            return made.encode_image(images)


def adapt(made: Any, **options: Any) -> None:
    elip_plugin.adapt(made, 64, load, **{"steps": STEPS, "batch": 16, "rate": 3e-4, **options})


def test_pruned_features_come_nearer_to_unpruned_ones_of_other_pictures(made: Any) -> None:
    held_out, losses = PICTURES[64:], list[float]()
    wanted, before = features(made, held_out, pruned=False), features(made, held_out)
    adapt(made, progress=lambda step, loss: losses.append(loss))
    after = features(made, held_out)

    def distance(x: Tensor) -> Tensor:
        return (1 - torch.nn.functional.cosine_similarity(x, wanted)).mean()

    assert len(losses) == STEPS and distance(after) < 0.7 * distance(before)
    assert not made.model.training


def test_of_each_picture_its_features_alone_are_kept(made: Any) -> None:
    """Not what they are a view of, such as all tokens."""
    large = 16 * 100_000
    alive: list[int] = []

    def encode(host_model: Any, images: Tensor) -> tuple[Tensor, ...]:
        found = host_model.encode_image(images)
        return (torch.cat([found, found.new_zeros(len(found), 100_000)], dim=1)[:, :32],)

    def count(step: int, loss: float) -> None:
        gc.collect()
        tensors = [each for each in gc.get_objects() if type(each) is Tensor]
        alive.append(len({t.data_ptr() for t in tensors if t.untyped_storage().nbytes() > large}))

    adapt(made, steps=4, encode=encode, progress=count)
    assert alive[-1] <= alive[0], alive


class Killed(Exception):
    pass


def test_a_stopped_call_goes_on_and_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole, state = elip_plugin.create("elip-embed-ViT-tiny"), tmp_path / "state.pt"
    adapt(whole)

    def stop(step: int, loss: float) -> None:
        if step == 55:
            raise Killed

    with pytest.raises(Killed):
        adapt(elip_plugin.create("elip-embed-ViT-tiny"), state=state, progress=stop)
    assert state.exists()
    with pytest.raises(DataError, match="is the state of another call"):
        adapt(elip_plugin.create("elip-embed-ViT-tiny"), state=state, rate=2e-3)
    others = elip_plugin.create("elip-embed-ViT-tiny")
    with torch.no_grad():
        others.model.visual.proj.mul_(2)
    with pytest.raises(DataError, match="is the state of another call"):
        adapt(others, state=state)
    resumed, steps = elip_plugin.create("elip-embed-ViT-tiny"), list[int]()
    adapt(resumed, state=state, progress=lambda step, loss: steps.append(step))
    assert steps == list(range(51, STEPS + 1)) and not state.exists()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_only_what_requires_a_gradient_learns(made: Any) -> None:
    before = deepcopy(made.model.state_dict())
    made.model.requires_grad_(False)
    made.model.visual.proj.requires_grad_(True)
    adapt(made, steps=3)
    changed = [n for n, v in made.model.state_dict().items() if not torch.equal(v, before[n])]
    assert changed == ["visual.proj"]


def test_a_model_that_cannot_learn_is_refused(made: Any) -> None:
    made.model.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing would be learned"):
        adapt(made)


def test_a_model_alone_is_refused_and_told_where_to_put_it(made: Any, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"adapt takes what elip_plugin\.create makes, got a CLIP"
    ):
        adapt(made.model)
    with pytest.raises(
        ConfigError, match=r"embed takes what elip_plugin\.create makes, got a CLIP"
    ):
        elip_plugin.embed(made.model, [tmp_path], tmp_path)


def test_several_features_are_taught(made: Any) -> None:
    def both(host_model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
        x = host_model.encode_image(images)
        return x, x[:, :8]

    one, two = list[float](), list[float]()
    adapt(deepcopy(made), steps=1, progress=lambda step, loss: one.append(loss))
    adapt(made, steps=1, encode=both, progress=lambda step, loss: two.append(loss))
    assert two[0] > one[0] > 0


@dataclass
class Given:
    options: dict[str, Any]
    error: type[Exception]
    message: str


@pytest.mark.parametrize(
    "given",
    [
        Given({"steps": 0}, ConfigError, "steps 0"),
        Given({"rate": 2.0}, ConfigError, "rate 2"),
        Given({"rate": float("nan")}, ConfigError, "rate nan"),
    ],
    ids=lambda given: given.message,
)
def test_numbers_that_mean_nothing(made: Any, given: Given) -> None:
    with pytest.raises(given.error, match=given.message):
        adapt(made, **given.options)


def test_a_plan_that_prunes_in_training_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match="pruned by the image; take the plan embed"):
        adapt(elip_plugin.create("elip-half-ViT-tiny"))


def test_a_loss_that_is_no_number_ends_it(made: Any) -> None:
    with torch.no_grad():
        made.model.visual.proj[0, 0] = torch.nan
    with pytest.raises(DataError, match="the loss is nan at step 0"):
        adapt(made)


def test_a_broken_state_is_one_error(made: Any, tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"no state")
    with pytest.raises(DataError, match="cannot be read"):
        adapt(made, state=tmp_path / "state.pt")


def test_what_is_taught_of_a_picture_as_it_is_and_mirrored_is_computed_once(made: Any) -> None:
    taught = list[Tensor]()

    def encode(host_model: Any, images: Tensor) -> tuple[Tensor]:
        if not torch.is_grad_enabled():
            taught.extend(images)
        return (host_model.encode_image(images),)

    adapt(made, steps=9, encode=encode)  # 64 pictures, twice, and some of them again
    assert len(taught) == 128
    views = [*PICTURES[:64], *PICTURES[:64].flip(-1)]
    assert {each.numpy().tobytes() for each in taught} == {v.numpy().tobytes() for v in views}
