"""`elip_plugin.create` for LAVIS: any arch without weights, small ones, and a run's checkpoint."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lavis")

from lavis_family import (
    ARCHS,
    CAPTIONS,
    PLANNED,
    pruned,
    section,
    stock,
)
from lavis_recorders import assert_equal, seen
from omegaconf import OmegaConf
from PIL import Image

from elip_plugin import ElipConfig, apply, create, find_handle, plan
from elip_plugin.errors import DataError, UnknownModelError, UnsupportedModelError
from elip_plugin.reducers import FOR_QUESTIONS

GRIDS = {
    "albef_pretrain": 14,
    "albef_retrieval": 24,
    "albef_vqa": 24,
    "albef_nlvr": 24,
    "albef_classification": 24,
    "albef_feature_extractor": 14,
    "blip_pretrain": 14,
    "blip_retrieval": 24,
    "blip_vqa": 30,
    "blip_nlvr": 24,
    "blip_classification": 24,
    "blip_caption": 24,
    "blip_image_text_matching": 24,
    "blip_feature_extractor": 14,
    "clip": 7,
    "clip_feature_extractor": 7,
    "blip_vqa:vqav2": 30,
    "clip:ViT-B-16": 14,
    "clip:openmoji": 8,
    "albef_pretrain:openmoji": 8,
    "blip_caption:large_coco": 24,
}
"""Patches of a side, by arch and model type."""


def test_shapes_of_all_archs_need_no_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(ARCHS) <= set(GRIDS)
    for name, side in GRIDS.items():
        made = create(f"elip_{name}", device="meta")
        assert made.grid_size == (side, side), name
        assert all(parameter.is_meta for parameter in made.model.parameters())
        weight = 0.0 if name.startswith("blip_caption") else 0.2
        config = dataclasses.replace(ElipConfig.preset("paper"), text_weight=weight)
        if name.partition(":")[0].endswith("_vqa"):
            config = ElipConfig.from_mapping(ARCHS[name.partition(":")[0]].default)
        handle, depth = find_handle(made.model), 24 if "large" in name else 12
        assert handle.config == config
        assert handle.plan == plan(config, num_patches=side**2, depth=depth)
    assert not capsys.readouterr().out
    for name in ("albef_pretrain", "clip:ViT-B-16", "clip:openmoji"):
        made = create(name, ElipConfig.preset("fast"), image_size=128, device="meta")
        side = 16 if "openmoji" in name else 8
        assert made.grid_size == (side, side)
        assert find_handle(made.model).plan.num_patches == side**2
        assert find_handle(made.model).config == ElipConfig.preset("fast")


def test_a_plan_that_nobody_says() -> None:
    """The paper's by the name of ours, with a warning; else the recommended one of its kind."""
    for arch in ("albef_retrieval", "blip_caption", "clip"):
        with pytest.warns(UserWarning, match="without `elip` has the paper's cuts; .*preset: half"):
            made = create(f"elip_{arch}", device="meta")
        assert find_handle(made.model).config.stages == ElipConfig.preset("paper").stages
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            made = create(arch, device="meta")
            said = pruned(arch, elip={"preset": "half"})
            applied = apply(stock(arch)).config
        assert find_handle(made.model).config == find_handle(said).config == applied
        assert applied == ElipConfig.preset("half")
    asked = ElipConfig.from_mapping(FOR_QUESTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for name in ("blip_vqa", "elip_blip_vqa"):
            assert find_handle(create(name, device="meta").model).config == asked
    assert apply(stock("blip_vqa")).config == asked
    changed = pruned("blip_vqa", elip={"eval_mode": "text"})
    assert find_handle(changed).config == dataclasses.replace(asked, eval_mode="text")


def test_other_names() -> None:
    with pytest.raises(UnknownModelError, match=r"no model type 'coco'; .*'vqav2'"):
        create("elip_blip_vqa:coco")
    with pytest.raises(UnsupportedModelError, match=r"alpro_qa cannot be pruned, .*albef_vqa"):
        create("elip_alpro_qa")
    with pytest.raises(UnsupportedModelError, match="ModifiedResNet"):
        create("clip:RN50", device="meta")


@pytest.mark.parametrize("arch", ["albef_pretrain", "blip_pretrain", "clip"])
def test_small_models_train(arch: str) -> None:
    made = create(f"elip_{arch}:openmoji")
    assert made.weights == "random weights"
    images, texts = made.example_batch(2)
    assert images.shape == (2, 3, 64, 64) and made.preprocess(picture()).shape == (3, 64, 64)
    with seen(made.model.train()) as lengths:
        loss = made.loss(images, texts)
    assert lengths == list(find_handle(made.model).plan.tokens)
    loss.backward()
    assert loss.isfinite()


def picture() -> Any:
    return Image.new("RGB", (80, 60), "red")


def save(arch: str, path: Path, **more: Any) -> Any:
    """Save a narrow model as LAVIS' runner does: with its config, without what is not trained."""
    model = pruned(arch, seed=5)
    weights = {k: v for k, v in model.state_dict().items() if "_m." not in k}
    config = {"model": OmegaConf.to_container(section(arch))}
    torch.save({"model": weights, "config": config, **more}, path)
    return model


PAIRS = ["albef_pretrain", "albef_retrieval", "blip_pretrain", "blip_retrieval", "blip_caption"]


@pytest.mark.parametrize("arch", [*PAIRS, "clip", "blip_vqa", "albef_feature_extractor"])
def test_the_checkpoint_of_a_run(arch: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_best.pth"
    given = save(arch, path).state_dict()
    made = create(f"elip_{arch}", checkpoint=str(path))
    assert made.weights == str(path) and made.grid_size == (4, 4) and made.name == arch
    loaded = made.model.state_dict()
    assert_equal(*({k: v for k, v in s.items() if "_m." not in k} for s in (loaded, given)))

    images, texts = made.preprocess(picture()).expand(4, -1, -1, -1), made.tokenize(CAPTIONS)
    if arch in (*PAIRS, "clip"):
        assert made.loss(*made.example_batch(4)).isfinite()
    else:
        with pytest.raises(UnsupportedModelError, match="does not train on plain pairs"):
            made.loss(images, texts)
    if arch == "blip_caption":
        with pytest.raises(UnsupportedModelError, match="no text encoder"):
            made.encode_text(texts)
        return
    made.model.train()
    with find_handle(made.model).guide(made.encode_text(texts)), seen(made.model) as lengths:
        assert len(made.encode_image(images)) == 4
    assert lengths == PLANNED


def test_the_fused_reference_is_the_unpruned_model(tmp_path: Path) -> None:
    save("blip_retrieval", tmp_path / "model.pth")
    made = create("blip_retrieval", checkpoint=str(tmp_path / "model.pth"))
    other = dataclasses.replace(made, model=copy.deepcopy(made.model))
    find_handle(other.model).remove()
    images, _ = made.example_batch(2)
    plain = other.encode_image(images)
    made.references["fused"](other.model)
    torch.testing.assert_close(other.encode_image(images), plain)
    assert "fused" not in create("clip:openmoji", device="meta").references


def test_checkpoints_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.pth"
    with pytest.raises(DataError, match="is no file"):
        create("clip", checkpoint=str(path))
    torch.save({}, path)
    with pytest.raises(DataError, match=r"does not fit clip:openmoji: .* missing, 0 unknown"):
        create("clip:openmoji", checkpoint=str(path))
    save("albef_retrieval", path, extra=Fraction(1, 3))
    with pytest.raises(DataError, match=f"set ELIP_TRUST_CHECKPOINT={path}"):
        create("albef_retrieval", checkpoint=str(path))
    monkeypatch.setenv("ELIP_TRUST_CHECKPOINT", str(path))
    assert create("albef_retrieval", checkpoint=str(path)).weights == str(path)
    with pytest.raises(DataError, match=r"does not fit albef_pretrain: .*missing, .*unknown"):
        create("albef_pretrain", checkpoint=str(path))


def test_the_callers_random_numbers_stay_as_they_are() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(5)
        drawn.append(torch.rand(3))
        before = torch.get_rng_state()
        create("clip:ViT-B-32", image_size=128)
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*drawn)
