"""Names of transformers' models, and what planning and measuring need of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import elip_plugin
from elip_plugin.errors import (
    ConfigError,
    DataError,
    PlanError,
    UnknownModelError,
    UnsupportedModelError,
)

hf = pytest.importorskip("transformers", minversion="4.57")

from hosts.transformers.tiny import READERS, UNGUIDED, make, save, save_processor  # noqa: E402

from elip_plugin.hosts import registry  # noqa: E402


@pytest.fixture
def clip(tmp_path: Path) -> str:
    """Name of a small CLIP whose folder has a config and an image processor."""
    return f"hf:{save('clip', tmp_path / 'clip')}"


def test_another_image_size(clip: str) -> None:
    made = elip_plugin.create(clip, device="meta", image_size=128)
    assert elip_plugin.find_handle(made.model).plan.num_patches == 256
    assert made.grid_size == (16, 16)
    assert made.preprocess(Image.new("RGB", (90, 70))).shape == (3, 128, 128)


TRAIN_ON_PAIRS = ("blip_vqa", "blip_caption")


@pytest.mark.parametrize("family", [*READERS, *UNGUIDED])
def test_a_local_folder_of_blip(family: str, tmp_path: Path) -> None:
    base = make(family)
    base.save_pretrained(tmp_path)
    save_processor(family, tmp_path)
    name = f"hf:{tmp_path}"
    if family == "instructblip_video":
        with pytest.raises(
            UnsupportedModelError, match=r"is a InstructBlipVideo.*only models that embed pictures"
        ):
            elip_plugin.create(name)
        return
    assert elip_plugin.hosts.registry.find_model(name).own_plan
    made: Any = elip_plugin.create(name, checkpoint=str(tmp_path))
    assert type(made.model).__name__ == type(base).__name__ and not made.has_text_tower
    assert all(torch.equal(made.model.state_dict()[k], v) for k, v in base.state_dict().items())
    handle = elip_plugin.find_handle(made.model)
    assert handle.config == elip_plugin.apply(base).config
    images, tokens = made.example_batch(2)
    assert made.encode_image(images).shape == (2, 65, 48)
    made.model.train()
    guided = family in READERS
    if guided:
        with made.model.elip.asked(guide=made.guide(tokens)):
            assert made.encode_image(images).shape[1] == handle.plan.tokens[-1]
        first, second = made.encode_text(tokens)
        assert not torch.allclose(first, second)
    else:
        assert made.encode_image(images).shape[1] == handle.plan.tokens[-1]
        with pytest.raises(UnsupportedModelError, match="has no text to guide its tower"):
            made.encode_text(tokens)
    if family in TRAIN_ON_PAIRS:
        made.loss(images, tokens).backward()
    else:
        with pytest.raises(UnsupportedModelError, match="does not train on plain pairs"):
            made.loss(images, tokens)
    picture = made.preprocess(Image.new("RGB", (90, 70), (255, 0, 0)))
    assert picture.shape == (3, 64, 64)
    folder = tmp_path / "qformer_tokenizer" if family.startswith("instruct") else tmp_path
    folder.mkdir(exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat"]
    (folder / "vocab.txt").write_text("\n".join(words))
    hf.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    read = made.tokenize(["a cat"])
    assert read["input_ids"][0, :4].tolist() == [2, 5, 6, 3]
    assert read["attention_mask"].sum() == 4


@pytest.mark.parametrize("family", ["clip", "siglip", "altclip", "chinese_clip", "metaclip_2"])
def test_a_local_folder(family: str, tmp_path: Path) -> None:
    base = make(family)
    elip_plugin.apply(base, {"preset": "fast", "text_weight": 0.3})
    base.save_pretrained(tmp_path)
    name = f"hf:{tmp_path}"
    assert elip_plugin.hosts.registry.find_model(name).own_plan
    with pytest.raises(DataError, match="has no image processor"):
        elip_plugin.create(name, checkpoint=str(tmp_path))
    with pytest.raises(DataError, match=r"no preprocessor_config.json"):
        elip_plugin.create(name).preprocess(Image.new("RGB", (90, 70)))
    save_processor(family, tmp_path)
    made = elip_plugin.create(name, checkpoint=str(tmp_path))
    assert elip_plugin.find_handle(made.model).config.text_weight == 0.3
    assert made.weights == str(tmp_path)
    for key, value in base.state_dict().items():
        assert torch.equal(made.model.state_dict()[key], value), key
    images, tokens = made.example_batch(2)
    features = made.encode_text(tokens)
    made.model.train()
    with elip_plugin.find_handle(made.model).guide(features):
        assert made.encode_image(images).shape == features.shape
    made.loss(images, tokens).backward()
    picture = made.preprocess(Image.new("RGB", (90, 70), (255, 0, 0)))
    assert picture.shape == (3, 64, 64)
    expected = [(c - m) / s for c, m, s in zip((1, 0, 0), made.mean, made.std)]
    torch.testing.assert_close(picture[:, 5, 7], torch.tensor(expected))
    with pytest.raises(DataError, match="no tokenizer"):
        made.tokenize(["a cat"])
    with pytest.raises(ConfigError, match="image_size"):
        elip_plugin.create(name, checkpoint=str(tmp_path), image_size=32)


def test_faults(tmp_path: Path, clip: str) -> None:
    with pytest.raises(UnknownModelError, match=r"no folder with a config.json \(nothing is down"):
        elip_plugin.create("hf:openai/clip-vit-base-patch17")
    with pytest.raises(DataError, match="is no folder"):
        elip_plugin.create(clip, checkpoint=str(tmp_path / "none"))
    (tmp_path / "config.json").write_text('{"model_type": "no_such"}')
    with pytest.raises(UnsupportedModelError, match=r"builds: .*no_such"):
        elip_plugin.create(f"hf:{tmp_path}")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UnsupportedModelError, match=r"builds: .*not a valid JSON file"):
        elip_plugin.create(f"hf:{tmp_path}")


def test_an_older_version_has_no_names_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.hosts()["transformers"], "oldest", (99, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an old version may be there for other packages alone
        elip_plugin.list_models()
    refused = r"models of transformers .* cannot be pruned: 99\.1 or later"
    for call in (
        lambda: elip_plugin.apply(make("clip")),
        lambda: elip_plugin.list_models("transformers"),
    ):
        with pytest.raises(UnsupportedModelError, match=refused):
            call()


def test_removing_leaves_no_plan_in_the_config(tmp_path: Path) -> None:
    """Of a model whose folder has one, built by name or by transformers itself."""
    saved = make("clip")
    elip_plugin.apply(saved, "fast")
    saved.save_pretrained(tmp_path / "pruned")
    save_processor("clip", tmp_path / "pruned")
    again = hf.CLIPModel.from_pretrained(tmp_path / "pruned")
    elip_plugin.apply(again, again.config.elip)
    made = elip_plugin.create(f"hf:{tmp_path / 'pruned'}", checkpoint=str(tmp_path / "pruned"))
    for i, model in enumerate((again, made.model)):
        folder = tmp_path / str(i)
        model.save_pretrained(folder)
        assert json.loads((folder / "config.json").read_text())["elip"]["stages"]
        elip_plugin.find_handle(model).remove()
        assert not hasattr(model.config, "elip")
        model.save_pretrained(folder)
        assert "elip" not in json.loads((folder / "config.json").read_text())


def test_a_refused_model_keeps_its_config(tmp_path: Path) -> None:
    model = make("clip")
    model.config.elip = {"preset": "fast"}
    with pytest.raises(PlanError):
        elip_plugin.apply(model, {"stages": [{"block": 99, "lookahead": 1, "keep": 0.5}]})
    assert model.config.elip == {"preset": "fast"}


def test_creating_a_model_leaves_the_random_state(clip: str) -> None:
    torch.manual_seed(123)
    first = torch.rand(1)
    torch.manual_seed(123)
    elip_plugin.create(clip, device="meta")
    elip_plugin.create(clip, image_size=96)
    assert torch.equal(torch.rand(1), first)


def test_what_a_checkpoint_is_not_to_blame_for(tmp_path: Path, monkeypatch: Any) -> None:
    make("clip").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    name = f"hf:{tmp_path}"
    with pytest.raises(DataError, match="cannot be read"):
        elip_plugin.create(name, checkpoint=str(tmp_path))

    def broken(*args: Any, **options: Any) -> None:
        raise AttributeError("a renamed class")

    monkeypatch.setattr(hf.CLIPModel, "__init__", broken)
    with pytest.raises(AttributeError, match="a renamed class"):
        elip_plugin.create(name, checkpoint=str(tmp_path))


RENAMED = """
from hosts.transformers.tiny import make
from transformers.models.altclip import modeling_altclip
import elip_plugin
from elip_plugin.hosts.registry import find_host
models = {name: make(name) for name in ("altclip", "dual", "clip")}
modeling_altclip.AltCLIPEncoderLayer.__name__ = "AltCLIPVisionLayer"
for name, model in models.items():
    try:
        find_host(model).describe(model)
        print(name, "known")
    except elip_plugin.ElipError as error:
        print(name, type(error).__name__, error)
    elip_plugin.apply(model, "fast").remove()  # otherwise as any other ViT
"""


@pytest.mark.slow
@pytest.mark.newest
def test_a_renamed_class_disables_its_family_only() -> None:
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", RENAMED],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    altclip, dual, clip = done.stdout.splitlines()
    assert altclip.startswith("altclip UnknownTowerError the vision tower AltCLIPVision")
    assert "those with layers ['CLIPEncoderLayer', 'SiglipEncoderLayer'," in altclip
    assert (dual, clip) == ("dual known", "clip known")
