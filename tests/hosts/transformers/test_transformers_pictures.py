"""Pictures become the images that transformers' own processors make of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import elip_plugin

hf = pytest.importorskip("transformers", minversion="4.57")
np = pytest.importorskip("numpy")
Image = pytest.importorskip("PIL.Image")

from hosts.transformers.tiny import make, save  # noqa: E402

SIZES = [(90, 70), (70, 91), (200, 67), (64, 64), (30, 41), (65, 64)]


def picture(size: tuple[int, int]) -> Any:
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR)


@pytest.mark.parametrize("family", ["clip", "siglip", "blip_vqa"])
def test_as_transformers_does(family: str, tmp_path: Path) -> None:
    folder = str(save(family, tmp_path))
    made = elip_plugin.create(f"hf:{folder}", checkpoint=folder)
    theirs = hf.AutoImageProcessor.from_pretrained(folder)
    assert (made.mean, made.std) == (tuple(theirs.image_mean), tuple(theirs.image_std))
    for size in SIZES:
        expected = theirs(picture(size), return_tensors="pt")["pixel_values"][0]
        assert expected.shape == (3, 64, 64)
        assert torch.equal(made.preprocess(picture(size)), expected)


def test_a_folder_s_own_settings_win(tmp_path: Path) -> None:
    make("clip").save_pretrained(tmp_path)
    own = {"size": {"height": 64, "width": 64}, "image_mean": [0.1] * 3, "image_std": [0.2] * 3}
    file = tmp_path / "preprocessor_config.json"
    images = {}
    for kind, size in (("square", own["size"]), ("crop", {"shortest_edge": 64}), ("old", 64)):
        file.write_text(json.dumps({**own, "size": size}))
        made = elip_plugin.create(f"hf:{tmp_path}", checkpoint=str(tmp_path))
        images[kind] = made.preprocess(picture((120, 70)))
        assert (made.mean, made.std) == ((0.1,) * 3, (0.2,) * 3)
    assert torch.equal(images["old"], images["crop"])  # a number means what CLIP's does
    assert not torch.equal(images["square"], images["crop"])
