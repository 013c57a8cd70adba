"""Models that embed pictures by name: `hf:FOLDER`, `timm:NAME`, `torchvision:NAME`."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hosts.anyvit.vits import transformers_vit
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

import elip_plugin
from elip_plugin.cli.main import app
from elip_plugin.errors import (
    ConfigError,
    DataError,
    MissingHostError,
    UnknownModelError,
    UnsupportedModelError,
)
from elip_plugin.export import export, load
from elip_plugin.hosts.anyvit import factory, names
from elip_plugin.measure.preview import solve
from elip_plugin.patching.install import find_pruner

PICTURE = Image.linear_gradient("L").convert("RGB").resize((90, 70))


def saved(model: Any, folder: Path, crop: int = 32) -> str:
    """Save a model with the processor of DINOv2, which resizes to more than it crops."""
    hf = pytest.importorskip("transformers", "4.57")
    model.eval().save_pretrained(folder)
    size = {"size": {"shortest_edge": crop * 5 // 4}, "crop_size": {"height": crop, "width": crop}}
    hf.BitImageProcessor(**size, image_mean=[0.5, 0.4, 0.3], image_std=[0.2] * 3).save_pretrained(
        folder
    )
    return str(folder)


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> str:
    """DINOv2 whose config is for 64 pixels, and whose processor gives 32."""
    torch.manual_seed(0)
    return saved(transformers_vit("Dinov2"), tmp_path_factory.mktemp("dino"))


def unpruned(made: Any, images: Tensor) -> Tensor:
    with torch.no_grad(), elip_plugin.find_handle(made.model).disabled():
        return made.encode_image(images)


@pytest.mark.parametrize(("asked", "side"), [(None, 32), (48, 48), (64, 64)])
def test_features_and_preprocessing_are_those_of_transformers(
    asked: int | None, side: int, dino: str
) -> None:
    hf = pytest.importorskip("transformers", "4.57")
    made = elip_plugin.create(f"hf:{dino}", checkpoint=dino, image_size=asked)
    handle = elip_plugin.find_handle(made.model)
    assert handle.plan.tokens[0] == 1 + (side // 8) ** 2 == 1 + made.grid_size[0] ** 2
    assert (made.mean, made.std) == ((0.5, 0.4, 0.3), (0.2,) * 3)
    sizes = {"size": {"shortest_edge": side * 5 // 4}, "crop_size": {"height": side, "width": side}}
    processor = hf.AutoImageProcessor.from_pretrained(dino, **sizes)
    images = processor(images=PICTURE, return_tensors="pt")["pixel_values"]
    assert torch.equal(made.preprocess(PICTURE)[None], images) and images.shape[2] == side
    assert made.example_batch(2)[0].shape == (2, 3, side, side)
    base = hf.AutoModel.from_pretrained(dino).eval()
    with torch.no_grad():
        expected = base(images).pooler_output
        pruned = made.encode_image(images)
    assert torch.equal(unpruned(made, images), expected)
    assert pruned.shape == expected.shape and not torch.allclose(pruned, expected)
    handle.remove()
    assert torch.equal(made.model(images).pooler_output, expected)


def test_written_weights_are_a_checkpoint(dino: str, tmp_path: Path) -> None:
    pytest.importorskip("timm", "1.0")
    images = torch.randn(2, 3, 64, 64)
    for name, given in ((f"hf:{dino}", dino), ("timm:vit_tiny_patch16_224", "")):
        made = elip_plugin.create(name, checkpoint=given, image_size=64)
        with torch.no_grad():
            for weight in made.model.parameters():
                weight.add_(0.01)
        folder = tmp_path / name[:2]
        folder.mkdir()
        written = str(made.save_weights(folder))
        again = elip_plugin.create(name, checkpoint=written, image_size=64)
        with torch.no_grad():
            assert torch.equal(again.encode_image(images), made.encode_image(images))


def test_what_is_pooled_where_the_model_has_no_pooler(tmp_path: Path) -> None:
    hf = pytest.importorskip("transformers", "4.57")
    for kind, first in (("ViT", True), ("IJepa", False)):
        base = transformers_vit(kind)
        base.pooler = None  # as in most published folders
        folder = saved(base, tmp_path / kind, crop=64)
        made = elip_plugin.create(f"hf:{folder}", checkpoint=folder)
        images = made.example_batch(2)[0]
        with torch.no_grad():
            tokens = base(images).last_hidden_state
        expected = tokens[:, 0] if first else tokens.mean(dim=1)
        assert torch.equal(unpruned(made, images), expected), kind
    assert hf.AutoConfig.from_pretrained(folder).model_type == "ijepa"


def test_another_plan_does_not_search_the_model_again(dino: str, monkeypatch: Any) -> None:
    made = elip_plugin.create(f"hf:{dino}", device="meta")
    monkeypatch.setattr(factory, "describe", None)
    made.prune(elip_plugin.ElipConfig.preset("half"))
    handle = elip_plugin.find_handle(made.model)
    assert handle.config == elip_plugin.ElipConfig.preset("half")
    assert handle.plan.tokens[0] == 17  # at the side of the processor, not of the config
    monkeypatch.undo()
    faster = elip_plugin.create(f"hf:{dino}", image_size=64, device="meta")
    faster.prune(solve(find_pruner(faster.model), 1.2))
    assert elip_plugin.find_handle(faster.model).plan.tokens[0] == 65


def test_a_model_of_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", "1.0")
    from safetensors.torch import save_file

    name = "vit_tiny_patch16_224"
    base = timm.create_model(name, num_classes=7).eval()
    file = tmp_path / "weights.safetensors"
    save_file(base.state_dict(), file)
    torch.save(base.state_dict(), tmp_path / "weights.pt")
    for path in (file, tmp_path / "weights.pt"):
        made = elip_plugin.create(f"timm:{name}", checkpoint=str(path))
        images = made.example_batch(1)[0]
        with torch.no_grad():
            expected = base.forward_head(base.forward_features(images), pre_logits=True)
        assert torch.equal(unpruned(made, images), expected)
    small = elip_plugin.create(f"timm:{name}", checkpoint=str(file), image_size=96)
    assert elip_plugin.find_handle(small.model).plan.tokens[0] == 37
    data = timm.data.resolve_model_data_config(base)
    transform = timm.data.create_transform(**{**data, "input_size": (3, 96, 96)})
    assert torch.equal(small.preprocess(PICTURE), transform(PICTURE))
    with pytest.raises(DataError, match=r"of timm:vit_small.* cannot be read: .*[Ss]ize"):
        elip_plugin.create("timm:vit_small_patch16_224", checkpoint=str(file))


def test_a_model_of_torchvision(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    base = models.vit_b_32(image_size=64).eval()
    torch.save(base.state_dict(), tmp_path / "weights.pt")
    made = elip_plugin.create(
        "torchvision:vit_b_32", checkpoint=str(tmp_path / "weights.pt"), image_size=64
    )
    images = made.example_batch(2)[0]
    features = unpruned(made, images)
    with torch.no_grad():
        assert torch.equal(base.heads(features), base(images))
    assert elip_plugin.find_handle(made.model).plan.tokens[0] == 5
    assert made.preprocess(PICTURE).shape == (3, 64, 64)
    with pytest.raises(DataError, match=r"of torchvision:vit_b_32 cannot be read: .*pos_embedding"):
        elip_plugin.create("torchvision:vit_b_32", checkpoint=str(tmp_path / "weights.pt"))


def test_texts_are_refused(dino: str) -> None:
    made = elip_plugin.create(f"hf:{dino}")
    for call in (
        lambda: made.encode_text(None),
        lambda: made.tokenize(["a"]),
        lambda: made.loss(torch.zeros(1), None),
        lambda: made.prune(elip_plugin.ElipConfig.preset("paper")),
    ):
        with pytest.raises(UnsupportedModelError, match=r"for its images alone.*half or embed"):
            call()


class Code:
    def __reduce__(self) -> Any:
        return print, ("unpickled",)


def test_faults(tmp_path: Path, dino: str, monkeypatch: Any, capsys: Any) -> None:
    def fails(error: type[Exception], match: str, name: str, **options: Any) -> None:
        with pytest.raises(error, match=match):
            elip_plugin.create(name, **options)

    pytest.importorskip("timm", "1.0")
    fails(
        UnknownModelError,
        "timm has no model 'vit_tiny_patch61_224'; did you",
        "timm:vit_tiny_patch61_224",
    )
    fails(UnknownModelError, "torchvision has no model 'vit_b_33'; did you", "torchvision:vit_b_33")
    fails(UnsupportedModelError, r"no plain vision .*\['vit_b_16'", "torchvision:resnet18")
    fails(UnsupportedModelError, "in ResNet no list of blocks", "timm:resnet18")
    fails(UnsupportedModelError, "cannot be built for images of 65", "timm:resnet18", image_size=65)
    fails(UnsupportedModelError, "of 65 pixels", "torchvision:vit_b_32", image_size=65)
    fails(ConfigError, "1 or more pixels, got 0", f"hf:{dino}", image_size=0)
    fails(DataError, "is no folder", f"hf:{dino}", checkpoint=str(tmp_path / "none"))
    pickled = tmp_path / "code.pt"
    pickled.write_bytes(pickle.dumps(Code()))
    for name in ("timm:vit_tiny_patch16_224", "torchvision:vit_b_32"):
        fails(DataError, "cannot be read as weights", name, checkpoint=str(pickled))
    torch.save({"epoch": 1}, tmp_path / "other.pt")
    fails(DataError, "no state dict", "torchvision:vit_b_32", checkpoint=str(tmp_path / "other.pt"))
    assert "unpickled" not in capsys.readouterr().out
    bare = tmp_path / "bare"
    transformers_vit("Dinov2").save_pretrained(bare)
    fails(DataError, "no image processor", f"hf:{bare}", checkpoint=str(bare))
    random = elip_plugin.create(f"hf:{bare}")
    with pytest.raises(DataError, match=r"no preprocessor_config.json"):
        random.preprocess(PICTURE)
    fixed = saved(transformers_vit("ViT"), tmp_path / "fixed", crop=32)
    fails(UnsupportedModelError, r"of 32 pixels", f"hf:{fixed}", checkpoint=fixed)
    oblong = tmp_path / "fixed" / "preprocessor_config.json"
    values = json.loads(oblong.read_text())
    oblong.write_text(json.dumps({**values, "do_center_crop": False}))
    fails(UnsupportedModelError, "squares of one size", f"hf:{fixed}", checkpoint=fixed)
    monkeypatch.setattr("elip_plugin.hosts.anyvit.names.find_spec", lambda name: None)
    with pytest.raises(MissingHostError, match="timm is not installed; run: pip install timm"):
        names.find("timm:vit_tiny_patch16_224")


def test_the_commands_take_such_names(dino: str, tmp_path: Path) -> None:
    def run(*args: str) -> str:
        result = CliRunner().invoke(app, [*args], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return " ".join(result.output.split())

    name = f"hf:{dino}"
    output = run("plan", "--model", name, "--image-size", "64", "-o", str(tmp_path / "plan.yaml"))
    assert "65 tokens of width 32" in output and "this model takes no text" in output
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(12):
        PICTURE.rotate(25 * i).save(pictures / f"{i}.png")
    weights = ("--model", name, "--checkpoint", dino)
    run("show", *weights, "--image", str(pictures / "1.png"), "-o", str(tmp_path / "a.html"))
    output = run("check", *weights, "--images", str(pictures), "-o", str(tmp_path / "check"),
                 "--neighbors", "3", "--image-size", "64",
                 "--plan", str(tmp_path / "plan.yaml"))  # fmt: skip
    assert "12 pictures" in output and "overlap@3" in output
    output = run("bench", "speed", "--model", name, "--variants", "full,half", "--batch", "2",
                 "--rounds", "1", "--device", "cpu")  # fmt: skip
    assert "step" in output


def test_an_exported_file_gives_what_the_model_gives(dino: str, tmp_path: Path) -> None:
    pytest.importorskip("torch", minversion="2.6")
    made = elip_plugin.create(f"hf:{dino}", checkpoint=dino, image_size=64)
    about = export(made, tmp_path / "out", format="torch", pictures=[PICTURE] * 10)
    assert about["image_size"] == [64, 64] and about["tokens"][0] == 65
    processor = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert processor["crop_size"] == {"height": 64, "width": 64}
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        expected = made.encode_image(images)
    found = load(tmp_path / "out", trusted=True)(images)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(found, unpruned(made, images), atol=1e-3)
