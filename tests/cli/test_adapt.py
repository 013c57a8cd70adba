"""`elip adapt`: weights that embed as the unpruned ones do, at the pruned cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import elip_plugin
from elip_plugin.cli.main import app

pytest.importorskip("open_clip")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    torch.manual_seed(0)
    for i in range(220):
        pixels = torch.randint(0, 256, (20, 20, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).resize((64, 64)).save(folder / f"{i:03}.png")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "before.pt"
    torch.save(elip_plugin.create("elip-ViT-tiny").model.state_dict(), path)
    return path


def run(weights: Path, images: Path, out: Path, *more: str) -> Any:
    options = ["--model", "ViT-tiny", "--checkpoint", weights, "--images", images, "-o", out]
    return CliRunner().invoke(app, ["adapt", *map(str, options), *more])


def test_the_report_is_about_pictures_held_out(
    weights: Path, pictures: Path, tmp_path: Path
) -> None:
    more = ["--rate", "3e-4", "--passes", "8", "--batch", "24", "--keep", "0.4"]
    found = run(weights, pictures, tmp_path, *more)
    assert found.exit_code == 0, found.output
    report = json.loads((tmp_path / "report.json").read_text())
    before, after = report["measures"]["cosine"]
    assert report["held_out"] == 100 and report["steps"] == 40
    assert after[0] > before[2], "the mean afterwards is above the interval before"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cache",
        "report.json",
        "weights.pt",
    ]
    # What it names as weights embeds, pruned, nearer to the first weights' unpruned features.
    assert f"--checkpoint {tmp_path / 'weights.pt'}" in " ".join(found.output.split())
    full = elip_plugin.create("elip-half-ViT-tiny", checkpoint=str(weights))
    adapted = elip_plugin.create("elip-embed-ViT-tiny", checkpoint=str(tmp_path / "weights.pt"))
    given = elip_plugin.create("elip-embed-ViT-tiny", checkpoint=str(weights))
    plan = elip_plugin.find_handle(given.model).config.to_mapping()
    plan["stages"] = [{**plan["stages"][0], "keep": 0.4}]
    for each in (adapted, given):
        each.prune(elip_plugin.ElipConfig.from_mapping(plan))
    shown = [full.preprocess(Image.open(path)) for path in sorted(pictures.iterdir())[:32]]
    images = torch.stack(shown)
    with torch.no_grad():
        wanted = full.encode_image(images)
        near, far = (
            torch.cosine_similarity(each.encode_image(images), wanted).mean()
            for each in (adapted, given)
        )
    assert near > far


def test_weights_that_became_worse_are_named(weights: Path, pictures: Path, tmp_path: Path) -> None:
    found = run(weights, pictures, tmp_path, "--rate", "0.1", "--passes", "0.5")
    assert found.exit_code == 0 and "are farther from the unpruned features" in found.output


def test_too_few_pictures_and_a_broken_one(weights: Path, pictures: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(pictures.iterdir())[:150]:
        (few / path.name).write_bytes(path.read_bytes())
    found = run(weights, few, tmp_path / "out")
    assert found.exit_code and "150 pictures are too few" in str(found.exception)
    assert not (tmp_path / "out").exists()
    for path in sorted(pictures.iterdir()):
        (few / path.name).write_bytes(path.read_bytes()[:40])
    found = run(weights, few, tmp_path / "out")
    assert found.exit_code and "cannot be read" in str(found.exception)
    assert not (tmp_path / "out" / "weights.pt").exists()
