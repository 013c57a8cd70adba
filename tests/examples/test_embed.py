"""Embedding a folder: by torch, by an exported model, and by Ray with a worker that dies."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from entry_points import elip
from PIL import Image
from scripts import load

EXAMPLES = Path(__file__).parents[2] / "examples"
COUNT = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for i in range(COUNT):
        pixels = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((80, 60)).save(made / f"{i:02d}.png")
    (made / "broken.png").write_bytes(b"no picture")
    return made


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the tests' small model."""
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "weights.pt"
    torch.save({"state_dict": open_clip.create_model("ViT-tiny").state_dict()}, path)
    return path


def start(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / script), "--model", "ViT-tiny", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def run(script: str, *words: str) -> str:
    made = start(script, *words)
    assert made.returncode == 0, made.stdout + made.stderr
    return made.stdout + made.stderr


def read(out: Path) -> Any:
    names = json.loads((out / "names.json").read_text())
    assert names == [f"{i:02d}.png" for i in range(COUNT)]
    return np.load(out / "features.npy")


@pytest.fixture(scope="module")
def embedded(
    folder: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str], str]:
    """The folder as the script embeds it: where, by which options, and what was printed."""
    out = tmp_path_factory.mktemp("index")
    words = ["--pretrained", str(weights), "--images", str(folder), "--out", str(out)]
    return out, words, run("embed_folder.py", *words)


@pytest.mark.slow
def test_a_folder(embedded: tuple[Path, list[str], str], tmp_path: Path) -> None:
    out, words, printed = embedded
    assert f"{COUNT} pictures by the plan embed" in printed and "left out: broken.png" in printed
    features = read(out)
    assert np.linalg.norm(features, axis=1) == pytest.approx(1, abs=1e-5)
    assert Image.open(out / "neighbors.png").size[1] > 96
    kept = {path: path.stat().st_mtime_ns for path in out.glob("cache/*/*.rows")}
    run("embed_folder.py", *words)  # nothing is embedded anew
    assert {path: path.stat().st_mtime_ns for path in out.glob("cache/*/*.rows")} == kept != {}
    np.testing.assert_array_equal(read(out), features)
    (tmp_path / "none").mkdir()
    made = start("embed_folder.py", *words[:2], "--images", str(tmp_path / "none"), *words[4:])
    assert made.returncode == 1 and "no picture is in" in made.stderr
    assert "Traceback" not in made.stderr


def test_a_sheet_of_neighbors(folder: Path) -> None:
    pytest.importorskip("open_clip")
    from elip_plugin.pictures import find_items

    items = find_items([folder / "00.png", folder / "01.png"])
    sheet = load("examples/embed_folder.py").contact_sheet(items, np.eye(2, dtype=np.float32))
    assert sheet.size == (2 * 96 + 16, 2 * 96)
    first, beside = (sheet.crop((x, 0, x + 92, 60)).tobytes() for x in (0, 96 + 16))
    assert beside == sheet.crop((0, 96, 92, 96 + 60)).tobytes() != first  # the other picture


@pytest.mark.slow
def test_an_exported_model_gives_the_same(
    folder: Path,
    weights: Path,
    embedded: tuple[Path, list[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exported = tmp_path / "exported"
    monkeypatch.setenv("ELIP_TRUST_CHECKPOINT", str(exported / "image.pt2"))
    elip(
        f"export --model elip-embed-ViT-tiny --checkpoint {weights} --format torch --out {exported}"
    )
    out = tmp_path / "index"
    run("embed_folder.py", "--export", str(exported), "--images", str(folder), "--out", str(out))
    np.testing.assert_allclose(read(out), read(embedded[0]), atol=1e-4)


@pytest.mark.slow
def test_ray_survives_the_death_of_a_worker(
    embedded: tuple[Path, list[str], str], tmp_path: Path
) -> None:
    pytest.importorskip("ray.data")
    out, words, _ = embedded
    flag = tmp_path / "killed"
    printed = run(
        "embed_ray.py", *words[:4], "--out", str(tmp_path / "ray"),
        "--batch", "3", "--die-once", str(flag),
    )  # fmt: skip
    assert flag.exists() and "left out: broken.png" in printed
    np.testing.assert_allclose(read(tmp_path / "ray"), read(out), atol=1e-5)
