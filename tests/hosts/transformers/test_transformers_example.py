"""The example that trains by `Trainer` runs, pruned and not, and writes comparable figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image
from scripts import load

hf = pytest.importorskip("transformers", minversion="4.57")
pytest.importorskip("accelerate")

VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "an",
    "emoji",
    "of",
    "shade",
    *"0123456",
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder as `python -m examples.openmoji` writes it, with a few plain pictures."""
    (tmp_path / "images").mkdir()
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    for split, count in (("train", 6), ("held_out", 3)):
        pairs = []
        for i in range(count):
            name = f"images/{split}{i}.png"
            Image.new("RGB", (64, 64), (40 * i, 0, 0)).save(tmp_path / name)
            pairs.append({"image": name, "caption": f"an emoji of shade {i}"})
        (tmp_path / f"{split}.json").write_text(json.dumps(pairs))
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> None:
    example = load(f"examples/{name}.py")
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    example.main()


def test_two_runs_side_by_side(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = []
    for name, elip in (("none", "none"), ("fast", '{"preset": "fast", "warmup": 0.5}')):
        out = data / f"{name}.json"
        options = ["--data", str(data), "--batch", "3", "--steps", "10", "--out", str(out)]
        run(monkeypatch, "finetune_transformers", *options, "--elip", elip)
        reports.append(json.loads(out.read_text()))
    unpruned, pruned = reports
    assert unpruned.keys() == pruned.keys()
    assert (unpruned["tokens"], pruned["tokens"][:9]) == ("all", "65 tokens")
    for report in reports:
        assert report["steps"] == 10 and report["peak_MiB"] > 100 and len(report["losses"]) == 1
        assert report["image_to_text_R@5"] == 100  # of three
    capsys.readouterr()
    picture, files = data / "losses.svg", [str(data / f"{name}.json") for name in ("none", "fast")]
    run(monkeypatch, "compare_finetuning", *files, files[0], "-o", str(picture))
    table = capsys.readouterr().out
    assert "| `none` | 10 | 2 |" in table and '"warmup": 0.5}` | 10 | 1 |' in table
    assert picture.stat().st_size > 5000


@pytest.mark.parametrize("elip", ["none", ""])
def test_questions_about_pictures(
    elip: str, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", str(data), "--batch", "4", "--steps", "3", "--questions", "5"]
    run(monkeypatch, "finetune_blip", *options, *(["--elip", elip] if elip else []))
    printed = capsys.readouterr().out
    assert ("65 tokens -> " in printed) is (elip != "none")
    assert "right answers: " in printed
