"""`elip embed` and `elip_plugin.embed`: features of a folder of pictures."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import elip_plugin
from elip_plugin.cli.main import app
from elip_plugin.errors import ElipError

pytest.importorskip("open_clip")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    torch.manual_seed(0)
    for i in range(10):
        pixels = torch.randint(0, 256, (20, 20, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).resize((64, 64)).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def test_the_files_hold_what_the_pruned_model_gives(pictures: Path, tmp_path: Path) -> None:
    weights, out = tmp_path / "weights.pt", tmp_path / "out"
    torch.save(elip_plugin.create("elip-ViT-tiny").model.state_dict(), weights)
    given = ["--model", "ViT-tiny", "--checkpoint", str(weights), "--images", str(pictures)]
    options = [*given, "-o", str(out), "--keep", "0.5", "--batch", "4"]
    found = CliRunner().invoke(app, ["embed", *options])
    assert found.exit_code == 0, found.output
    assert (
        "left out: broken.png" in found.output
        and "features [10, 32] of 10 pictures" in found.output
    )
    names = json.loads((out / "names.json").read_text())
    assert names == [f"{i}.png" for i in range(10)]
    made = elip_plugin.create("elip-embed-ViT-tiny", checkpoint=str(weights))
    plan = elip_plugin.find_handle(made.model).config.to_mapping()
    plan["stages"][0]["keep"] = 0.5
    made.prune(elip_plugin.ElipConfig.from_mapping(plan))
    images = torch.stack([made.preprocess(Image.open(pictures / name)) for name in names])
    with torch.no_grad():
        wanted = torch.nn.functional.normalize(made.encode_image(images), dim=1)
        with elip_plugin.find_handle(made.model).disabled():
            full = torch.nn.functional.normalize(made.encode_image(images), dim=1)
    features = np.load(out / "features.npy")
    np.testing.assert_allclose(features, wanted.numpy(), atol=1e-5)
    assert np.abs(features - full.numpy()).max() > 1e-3


def test_what_is_embedded_is_read_again_and_plans_are_kept_apart(
    pictures: Path, tmp_path: Path
) -> None:
    made = elip_plugin.create("elip-embed-ViT-tiny")
    (pictures / "broken.png").unlink()
    done: list[Any] = []
    encode = type(made).encode_image

    def counted(self: Any, images: torch.Tensor) -> torch.Tensor:
        done.append(len(images))
        return encode(self, images)

    made.encode_image = counted.__get__(made)  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match="ViT-tiny was made without a checkpoint"):
        first, names = elip_plugin.embed(made, [pictures], tmp_path / "out", batch=4)
    made.weights = "weights.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again, _ = elip_plugin.embed(made, [str(pictures)], tmp_path / "out", batch=4)
    assert done == [4, 4, 2] and len(names) == 10 and np.array_equal(first, again)
    made.prune(elip_plugin.ElipConfig.from_mapping({"preset": "half", "eval_mode": "image"}))
    other, _ = elip_plugin.embed(made, [pictures], tmp_path / "out", batch=4)
    assert done == [4, 4, 2] * 2 and np.abs(other - first).max() > 1e-4


def test_random_weights_and_an_empty_folder_are_refused(pictures: Path, tmp_path: Path) -> None:
    options = ["--model", "ViT-tiny", "--images", str(pictures), "-o", str(tmp_path / "out")]
    found = CliRunner().invoke(app, ["embed", *options])
    assert isinstance(found.exception, ElipError) and "--random" in str(found.exception)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ElipError, match="no picture"):
        elip_plugin.embed(elip_plugin.create("elip-embed-ViT-tiny"), [tmp_path / "empty"], "out")
