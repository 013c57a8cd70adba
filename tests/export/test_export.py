"""Exported towers: what they give, what is refused, and what a damaged folder says."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from entry_points import elip
from torch import Tensor, nn
from typer.testing import CliRunner

import elip_plugin
from elip_plugin.cli.main import app
from elip_plugin.errors import (
    ConfigError,
    DataError,
    ElipError,
    MissingPackageError,
    UnsupportedModelError,
)
from elip_plugin.export import export, formats, load, manifest
from elip_plugin.export.formats import FORMATS
from elip_plugin.export.parity import ParityError, compare, count_changed_rankings
from elip_plugin.export.tower import capture

open_clip = pytest.importorskip("open_clip")
NAME = "elip-embed-ViT-tiny-6"


def need(name: str) -> None:
    pytest.importorskip("torch", minversion="2.6")
    for package in FORMATS[name].packages:
        pytest.importorskip(package)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export by torch.export, which needs no further package."""
    need("torch")
    out = tmp_path_factory.mktemp("export") / "tower"
    export(elip_plugin.create(NAME), out, format="torch")
    return out


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


# What a folder holds, and gives.


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_a_file_gives_what_the_model_gives(name: str, tmp_path: Path) -> None:
    need(name)
    made = elip_plugin.create(NAME)
    about = export(made, tmp_path / "out", format=name, text=True)
    encode = load(tmp_path / "out", trusted=True)
    unpruned = open_clip.create_model("ViT-tiny-6").eval()
    unpruned.load_state_dict(made.model.state_dict())
    for batch in (1, 3):
        images = torch.randn(batch, 3, 64, 64)
        with torch.no_grad():
            expected, full = made.encode_image(images), unpruned.encode_image(images)
        found = encode(images)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert (found - full).abs().max() > 1e-3
        assert (encode(images.numpy()) == found.numpy()).all()
    tokens = made.example_batch(2)[1]
    texts = load(tmp_path / "out", tower="text", trusted=True)(tokens)
    torch.testing.assert_close(texts, made.encode_text(tokens).detach(), rtol=0, atol=1e-5)
    tokens_left = elip_plugin.find_handle(made.model).plan.tokens
    assert about["tokens"] == list(tokens_left) and tokens_left[-1] < tokens_left[0] == 65
    assert about["elip"]["eval_mode"] == "image"


def test_what_lies_beside_the_file(folder: Path) -> None:
    made = elip_plugin.create(NAME)
    assert {path.name for path in folder.iterdir()} == {
        "image.pt2",
        "manifest.json",
        "open_clip_config.json",
    }
    about = json.loads((folder / "manifest.json").read_text())
    assert about["weights"]["sha256"] == manifest.hash_weights(made.model.state_dict())
    config = json.loads((folder / "open_clip_config.json").read_text())
    expected = open_clip.get_model_config("ViT-tiny-6")
    assert config["model_cfg"] == expected and config["preprocess_cfg"]["mean"] == about["mean"]


@pytest.mark.slow
def test_the_files_of_transformers(tmp_path: Path) -> None:
    need("torch")
    transformers = pytest.importorskip("transformers", minversion="4.57")
    from hosts.transformers.tiny import make, save_processor

    for family, kind in (("clip", "CLIP"), ("siglip", "Siglip")):
        saved = tmp_path / family
        model = make(family, num_hidden_layers=2)
        model.config.elip = "embed"
        model.save_pretrained(saved)
        save_processor(family, saved)
        (saved / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a"]))
        transformers.BertTokenizerFast(str(saved / "vocab.txt")).save_pretrained(saved)
        out = tmp_path / f"{family}-out"
        made = elip_plugin.create(f"hf:{saved}", checkpoint=str(saved))
        export(made, out, format="torch", text=True)
        written = json.loads((out / "preprocessor_config.json").read_text())
        assert written["image_processor_type"] == f"{kind}ImageProcessor"
        assert written["image_mean"] == list(made.mean)
        tokenizer = transformers.AutoTokenizer.from_pretrained(out, local_files_only=True)
        assert tokenizer("a")["input_ids"] == [2, 4, 3]
        encode = load(out, tower="text", trusted=True)
        tokens = made.example_batch(3)[1]
        assert torch.equal(encode(*tokens.values()), made.encode_text(tokens).detach())


def test_equal_weights_have_equal_hashes_and_others_not() -> None:
    state = {"a": torch.zeros(2, 3), "b": torch.arange(3)}
    first = manifest.hash_weights(state)
    assert manifest.hash_weights(dict(reversed(state.items()))) == first
    others: list[dict[str, Tensor]] = [
        {**state, "a": torch.zeros(3, 2)},
        {**state, "a": torch.tensor([[0.0, 0, 0], [0, 0, 1e-30]])},
        {"a": state["a"], "c": state["b"]},
        {**state, "b": state["b"].int()},
    ]
    assert first not in [manifest.hash_weights(other) for other in others]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_equal_scores_favor_the_earlier_token_in_a_file(name: str, tmp_path: Path) -> None:
    need(name)

    class Sorted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sort(dim=1, descending=True, stable=True).indices

    path = tmp_path / f"sort{FORMATS[name].suffix}"
    FORMATS[name].write(capture(Sorted(), (torch.randn(2, 40),)), path, ("x",))
    run = FORMATS[name].open(path, 1)
    for batch in (1, 5):
        x = torch.randint(0, 3, (batch, 40)).float()
        assert torch.equal(run(x), Sorted()(x))


# What is refused.


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"preset": "half"}, "eval_mode 'full' keeps all tokens"),
        ({"reducer": "random", "eval_mode": "image"}, "draws by chance"),
        ({"reducer": "cluster", "eval_mode": "image"}, "draws by chance"),
        ({"reducer": "similarity"}, "chooses by a text"),
        ({"preset": "fast", "guide_source": "batch", "eval_mode": "text"}, "prunes by a text"),
    ],
)
def test_what_cannot_be_exported(config: dict[str, Any], reason: str, tmp_path: Path) -> None:
    made = elip_plugin.create("ViT-tiny-6", elip_plugin.ElipConfig.from_mapping(config))
    with pytest.raises(UnsupportedModelError, match=reason):
        export(made, tmp_path / "out", format="torch")
    assert not list(tmp_path.iterdir())


def test_a_tower_that_torch_cannot_follow(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.sum() > 0 else x

    with pytest.raises(UnsupportedModelError, match=r"torch\.export cannot follow this tower"):
        capture(Odd(), (torch.randn(2, 3),))


@pytest.mark.slow
@pytest.mark.parametrize("change", ["features", "nan", "shape"])
def test_nothing_is_left_of_a_file_that_gives_something_else(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("torch")
    open_file = formats.open_torch

    def opened(path: Path, threads: int | None) -> Callable[..., Tensor]:
        run = open_file(path, threads)

        def changed(*inputs: Tensor) -> Tensor:
            features = run(*inputs)
            if change == "shape":
                return features[:, 1:]
            return features + 1e-2 if change == "features" else features * torch.nan

        return changed

    broken = formats.Format(".pt2", (), formats.write_torch, opened)
    monkeypatch.setitem(FORMATS, "torch", broken)  # type: ignore[arg-type]
    with pytest.raises(ParityError, match="features"):
        export(elip_plugin.create(NAME), tmp_path / "out", format="torch")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("spoilt", [1, 2, 5])
def test_features_of_one_batch_that_are_no_numbers_are_noticed(spoilt: int) -> None:
    def exported(x: torch.Tensor) -> torch.Tensor:
        return x * torch.nan if len(x) == spoilt else x

    with pytest.raises(ParityError, match="differ by up to nan"):
        compare(lambda x: x, exported, [torch.randn(8, 4)], batches=(1, 2, 5))


def test_a_changed_ranking_is_noticed_and_a_tie_is_none() -> None:
    near = torch.tensor([[1.0, 0, 0], [1.0, 0.1, 0], [1.0, 0.1004, 0], [0, 0, 1.0]])
    moved = near.clone()
    moved[1, 1], moved[2, 1] = 0.1004, 0.1
    assert count_changed_rankings(near, near) == 0
    assert count_changed_rankings(near, moved, tie=1e-6) > 0
    assert count_changed_rankings(near, moved, tie=1e-3) == 0
    # Rankings by cosine may change where no feature moves by more than rounding.
    base = torch.cat([near, torch.tensor([[200.0, 0, 0]])])
    other = torch.cat([moved, base[4:]])
    with pytest.raises(ParityError, match="ranks neighbors"):
        compare(lambda x: base[x], lambda x: other[x], [torch.arange(5)], batches=(5,))


def test_a_folder_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        export(elip_plugin.create(NAME), tmp_path, format="torch")
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = formats.Format(".x", ("no_such_package",), formats.write_torch, formats.open_torch)
    monkeypatch.setitem(FORMATS, "x", absent)  # type: ignore[arg-type]
    with pytest.raises(MissingPackageError, match=r"pip install 'elip-plugin\[export\]'"):
        formats.find_format("x")
    with pytest.raises(ConfigError, match="format 'pdf' is not known; choose from"):
        formats.find_format("pdf")


# Reading a folder.


def message(path: Path, **options: Any) -> str:
    with pytest.raises(ElipError) as caught:
        load(path, **{"trusted": True, **options})
    return str(caught.value)


def test_a_damaged_file(copied: Path) -> None:
    whole = (copied / "image.pt2").read_bytes()
    (copied / "image.pt2").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "image.pt2 is damaged" in message(copied)
    (copied / "image.pt2").unlink()
    assert "image.pt2 is missing" in message(copied)


def test_a_changed_manifest(copied: Path) -> None:
    path = copied / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"image_size"', '"size"'))
    assert "no manifest of version 1 with" in message(copied)
    path.write_text(json.dumps({**json.loads(text), "files": ["image.pt2"]}))
    assert "no manifest of version 1 with" in message(copied)
    path.write_text(text[:100])
    assert "manifest.json cannot be read" in message(copied)
    path.write_text('{"manifest": 7}')
    assert "no manifest of version 1" in message(copied)
    path.unlink()
    assert "has no manifest.json" in message(copied)


def test_another_tower(folder: Path) -> None:
    assert "has the towers ['image'], not 'text'" in message(folder, tower="text")


def test_inputs_of_another_shape_or_type(folder: Path) -> None:
    encode = load(folder, trusted=True)
    for images in (torch.randn(2, 3, 96, 96), torch.randn(3, 64, 64), torch.randn(0, 3, 64, 64)):
        with pytest.raises(DataError, match="--image-size"):
            encode(images)
    with pytest.raises(DataError, match="takes float32"):
        encode(torch.randn(2, 3, 64, 64).double())
    with pytest.raises(DataError, match="got 2 inputs"):
        encode(torch.randn(2, 3, 64, 64), torch.randn(2, 3, 64, 64))


def test_a_file_of_torch_is_read_only_where_it_is_trusted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "can run code" in message(folder, trusted=False)
    monkeypatch.setenv("ELIP_TRUST_CHECKPOINT", str(folder / "image.pt2"))
    load(folder)


# The command.


@pytest.mark.slow
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("torch")
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for i in range(3):
        Image.effect_noise((80, 60), 90 + i).save(tmp_path / "pictures" / f"{i}.png")
    given = f"export --model {NAME} --random --format torch"
    said = elip(f"{given} --images pictures --image-size 96 -o big")
    assert "neighbors of 10 inputs come in the same order" in said and re.search(
        r"counted: 0\.[4-7]\d of", said
    )
    assert "ViT-tiny-6, plan embed, evaluation pruned, weights random" in said
    assert load(tmp_path / "big", trusted=True).image_size == (96, 96)
    given = "export --model elip-fast-ViT-tiny-6 --random --format torch"
    elip(f"{given} --keep 0.5,0.4,0.3 -o fast")
    assert load("fast", trusted=True).manifest["elip"]["eval_mode"] == "image"


def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    for words, message in (
        ("--plan similar.json --random", "chooses by a text"),
        ("", "needs weights: give --checkpoint .*, or --random"),
        ("--random --checkpoint x.pt", "leave one of them out"),
        ("--keep 0.8,0.5,0.3 --random", "3 values, and the plan 'half' has 1 stage: write 1"),
    ):
        (tmp_path / "similar.json").write_text('{"reducer": "similarity", "eval_mode": "text"}')
        words = words.replace("similar.json", f"{tmp_path}/similar.json")
        given = f"export --model elip-half-ViT-tiny-6 {words} --format torch -o {tmp_path}/out"
        refused = CliRunner().invoke(app, given.split())
        assert isinstance(refused.exception, ElipError)
        assert re.search(message, str(refused.exception)), refused.exception
