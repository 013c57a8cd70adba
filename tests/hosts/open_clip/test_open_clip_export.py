"""Models leave as base models, for people who do not have this package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import elip_plugin

open_clip = pytest.importorskip("open_clip")
hub = sys.modules["open_clip.push_to_hf_hub"]

LOAD = """
import json, sys, open_clip, torch
folder = sys.argv[1]
assert "elip-ViT-B-16" not in open_clip.list_models()
config = json.load(open(folder + "/open_clip_config.json"))["model_cfg"]
model = open_clip.CLIP(**config)
model.load_state_dict(torch.load(folder + "/open_clip_pytorch_model.bin"), strict=True)
torch.save(model.eval().encode_image(torch.ones(1, 3, 64, 64)), folder + "/features.pt")
"""


class Tokenizer:
    def save_pretrained(self, folder: Path) -> None:
        (Path(folder) / "tokenizer.txt").write_text("")


def test_a_saved_model_loads_without_this_package(tmp_path: Path) -> None:
    model: Any = open_clip.create_model("elip-ViT-tiny").eval()
    config = open_clip.get_model_config("elip-ViT-tiny")
    hub.save_for_hf(model, Tokenizer(), config, str(tmp_path), safe_serialization=False)
    assert "elip" in config  # the caller's is left as it was
    saved = json.loads((tmp_path / "open_clip_config.json").read_text())
    assert saved["model_cfg"] == open_clip.get_model_config("ViT-tiny")
    env = {**os.environ, "ELIP_AUTOLOAD": "0"}
    subprocess.run([sys.executable, "-c", LOAD, str(tmp_path)], check=True, env=env)
    expected = model.encode_image(torch.ones(1, 3, 64, 64))
    assert torch.equal(torch.load(tmp_path / "features.pt"), expected)


def test_a_local_folder_with_the_key_is_built_pruned(tmp_path: Path) -> None:
    if not hasattr(open_clip.factory, "LOCAL_DIR_PREFIX"):
        pytest.skip("this open_clip has no local-dir: names")
    config = {**open_clip.get_model_config("ViT-tiny"), "elip": {"preset": "fast"}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    model = open_clip.create_model(f"local-dir:{tmp_path}")
    assert elip_plugin.find_handle(model).config == elip_plugin.ElipConfig.preset("fast")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    assert tokenizer(["a cat"]).shape == (1, 24)
