"""`elip check` from pictures to its page, on small models with random weights."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from typer.testing import CliRunner

import elip_plugin
from elip_plugin.check import study
from elip_plugin.check.embed import Embedder
from elip_plugin.cli import main as cli
from elip_plugin.config import ElipConfig
from elip_plugin.pictures import Item, find_items

MODEL = "ViT-tiny"
COUNT = 24


def draw(path: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    image = Image.new("RGB", (40, 30), tuple(generator.integers(0, 256, 3).tolist()))
    pen = ImageDraw.Draw(image)
    for left, top in generator.integers(0, 30, (4, 2)).tolist():
        pen.rectangle((left, top, left + 9, top + 9), tuple(generator.integers(0, 256, 3).tolist()))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "pictures"
    for i in range(COUNT):
        draw(made / "ab"[i % 2] / f"{i:02d}.png", i)
    return made


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Callable[..., Any]:
    """Runs the command on the pictures."""
    pytest.importorskip("open_clip")

    def call(*more: str) -> Any:
        words = ["check", "--model", MODEL, "--images", str(folder), "-o", str(tmp_path / "out")]
        words.append("--random")
        return CliRunner().invoke(cli.app, [*words, *more], catch_exceptions=False)

    return call


def report(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "out" / "report.json").read_text())
    return found


def test_from_pictures_to_the_page(run: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
    for i in range(COUNT):  # a text beside each picture
        (folder / "ab"[i % 2] / f"{i:02d}.txt").write_text(f"picture {i % 20}")
    (folder / "a" / "<broken>.png").write_bytes(b"no picture")
    made = run("--neighbors", "3")
    assert made.exit_code == 0, made.output
    assert (
        "left out: a/<broken>.png" in made.output
        and "plan embed, evaluation pruned, weights random" in made.output
    )
    found = report(tmp_path)
    assert found["pictures"] == COUNT and list(found["broken"]) == ["a/<broken>.png"]
    assert found["plan"]["eval_mode"] == "image" and found["forward_cost"] < 0.7
    measures = {each["name"]: each for each in found["measures"]}
    assert set(measures) == {
        "cosine", "overlap@3", "query-overlap@3", "index-overlap@3", *study.TEXT_MEASURES
    }  # fmt: skip
    for each in measures.values():
        assert each["value"]["low"] <= each["value"]["mean"] <= each["value"]["high"]
    assert [(part["folder"], part["pictures"]) for part in found["folders"]] == [
        ("a", COUNT // 2), ("b", COUNT // 2)
    ]  # fmt: skip
    assert len(found["worst"]) == COUNT
    lines = (tmp_path / "out" / "pictures.tsv").read_text().splitlines()
    shares = [float(line.split("\t")[2]) for line in lines[1:]]
    assert np.mean(shares) == pytest.approx(measures["overlap@3"]["value"]["mean"])
    page = (tmp_path / "out" / "index.html").read_text()
    assert "&lt;broken&gt;.png" in page and "<broken>" not in page and "$" not in page
    assert page.index(found["worst"][0]) < page.index(found["worst"][5])
    assert "which patches survive" in (tmp_path / "out" / "patches.html").read_text()
    assert ElipConfig.from_mapping(str(tmp_path / "out" / "plan.json")).eval_mode == "image"


def test_a_folder_that_fares_worse_is_marked() -> None:
    items = [Item(f"{'aaabbbc'[min(i // 5, 6)]}/{i}.png", Path("x"), 1, 1) for i in range(31)]
    values = np.random.default_rng(0).uniform(0.9, 1.0, 31)
    values[15:30] -= 0.5  # folder b
    found = study._by_folder(items, {"cosine": values, "overlap@3": values}, 3)
    assert [(part.folder, part.pictures, part.lower) for part in found] == [
        ("a", 15, False), ("b", 15, True)
    ]  # fmt: skip  # the one picture of c shows nothing
    assert found[1].cosine.mean == pytest.approx(values[15:30].mean())
    assert study._by_folder(items[:15], {"cosine": values[:15], "overlap@3": values[:15]}, 3) == []


def test_features_are_those_of_the_model(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    config = ElipConfig.from_mapping({"preset": "half", "eval_mode": "image"})
    host_model = elip_plugin.create(MODEL)
    items = find_items([folder])
    embedder = Embedder(host_model, tmp_path, 5, lambda what, done, total: None)
    full, pruned = (embedder.pictures(items, each)[0] for each in (None, config))
    images = torch.stack([host_model.preprocess(item.read()) for item in items])
    with torch.no_grad():
        elip_plugin.find_handle(host_model.model).remove()
        wanted = host_model.encode_image(images)
        elip_plugin.apply(host_model.model, config)
        wanted_pruned = host_model.encode_image(images)
    for made, features in ((full, wanted), (pruned, wanted_pruned)):
        expected = torch.nn.functional.normalize(features, dim=1)
        torch.testing.assert_close(torch.from_numpy(np.array(made)), expected)
    assert not np.allclose(full, pruned, atol=1e-4)


def test_a_second_run_embeds_nothing_anew(
    run: Callable[..., Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encode = Embedder._encode

    def counted(self: Any, images: Any) -> Any:
        encoded.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(Embedder, "_encode", counted)
    assert run().exit_code == 0
    before = report(tmp_path)
    assert sum(encoded) == 2 * COUNT
    assert run().exit_code == 0
    assert sum(encoded) == 2 * COUNT and report(tmp_path) == before
    draw(folder / "a" / "00.png", 99)  # one picture changes
    assert run().exit_code == 0
    assert sum(encoded) == 2 * COUNT + 2
    assert run("--plan", "fast").exit_code == 0  # another plan: unpruned ones are there
    assert sum(encoded) == 3 * COUNT + 2


def test_other_weights_are_embedded_anew(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    items, host_model = find_items([folder]), elip_plugin.create(MODEL)
    model: Any = host_model.model
    parameter, rows = model.visual.class_embedding, []
    start = parameter.detach().clone()
    for scale in (1.0, 0.5, 1.0):
        with torch.no_grad():
            parameter.copy_(scale * start)
        embedder = Embedder(host_model, tmp_path, 8, lambda what, done, total: None)
        rows.append(np.array(embedder.pictures(items, None)[0]))
    assert np.abs(rows[0] - rows[1]).max() > 1e-4 and (rows[0] == rows[2]).all()
    assert len(list(tmp_path.glob("*/*.rows"))) == 2


def test_a_bound_is_found_or_the_exit_code_is_1(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "FEWEST", COUNT)
    made = run("--bound", "cosine=0.2")
    assert made.exit_code == 0, made.output
    found = report(tmp_path)
    costs = [trial["candidate"]["forward_cost"] for trial in found["bound"]["trials"]]
    assert costs == sorted(costs, reverse=True) and len(costs) > 1
    assert found["bound"]["found"] == found["plan"] and found["bound"]["confirmed"]
    assert found["forward_cost"] == costs[-1]
    assert re.search(r"cosine of 0\.2 holds by keep", made.output)
    made = run("--bound", "overlap@2=0.999")
    assert made.exit_code == 1
    assert "No plan that was tried is shown to keep overlap@2 of 0.999" in made.output
    assert report(tmp_path)["bound"]["found"] is None


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--bound", "recall@1=0.9"], "is no bound: write overlap@10=0.95"),
        (["--bound", "overlap@10=0.9"], "24 pictures cannot show a bound"),
        (["--neighbors", "24"], "24 pictures have no 24 neighbors each: give 25 pictures"),
        (["--plan", "hlaf"], "did you mean ['half']?"),
        (["--images", "nothing"], "nothing does not exist"),
        (["--plan", "needs-text.json"], "chooses by a text (reducer 'similarity')"),
    ],
)
def test_faults_are_one_line_before_any_work(
    words: list[str],
    fault: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "needs-text.json").write_text('{"reducer": "similarity", "eval_mode": "text"}')
    given = [
        "elip",
        "check",
        "--model",
        "elip-none",
        "--random",
        "--images",
        str(folder),
        "-o",
        "out",
    ]
    monkeypatch.setattr(sys, "argv", [*given, *words])
    with pytest.raises(SystemExit) as done:
        cli.main()
    error = capsys.readouterr().err
    assert done.value.code == 1 and error.count("\n") == 1 and fault in error, error
    assert not (tmp_path / "out").exists()


def test_only_broken_pictures(run: Callable[..., Any], folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(elip_plugin.ElipError, match=r"none of 24 pictures can be read; a/00\.png"):
        run()


def test_texts_for_a_model_without_a_text_tower(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("timm", minversion="1")
    (folder / "a" / "00.txt").write_text("zero")
    words = ["check", "--model", "timm:vit_tiny_patch16_224", "--random", "--neighbors", "2"]
    words += ["--images", str(folder), "-o", str(tmp_path / "out")]
    made = CliRunner().invoke(cli.app, words, catch_exceptions=False)
    assert made.exit_code == 0, made.output
    assert not {each["name"] for each in report(tmp_path)["measures"]} & {*study.TEXT_MEASURES}


def test_pictures_that_cannot_be_resized_are_left_out(
    run: Callable[..., Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from elip_plugin.hosts.open_clip.factory import OpenClipModel

    preprocess = OpenClipModel.preprocess

    def refuse(self: Any, picture: Any) -> Any:
        if picture.size[0] == 1:
            raise ValueError("height and width must be > 0")
        return preprocess(self, picture)

    monkeypatch.setattr(OpenClipModel, "preprocess", refuse)
    Image.new("RGB", (1, 900)).save(folder / "thin.png")
    assert run().exit_code == 0
    found = report(tmp_path)
    assert found["pictures"] == COUNT and "thin.png" in found["broken"]


def test_a_folder_of_transformers(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers", minversion="4.57")
    from hosts.transformers.tiny import save

    save("clip", tmp_path / "model")
    model = str(tmp_path / "model")
    words = ["check", "--model", f"hf:{model}", "--checkpoint", model, "--images", str(folder)]
    made = CliRunner().invoke(
        cli.app, [*words, "-o", str(tmp_path / "out")], catch_exceptions=False
    )
    assert made.exit_code == 0, made.output
    assert report(tmp_path)["pictures"] == COUNT
