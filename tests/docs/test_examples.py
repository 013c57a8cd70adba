"""Every example runs and says what it should."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples"
EXPECTED = {
    "open_clip_training": (
        "open_clip",
        ["45% of 12 blocks' tokens", "step 9: loss", "fit the plain"],
    ),
    "lavis_finetuning": ("lavis", ["45% of 12 blocks' tokens", "step 2: loss"]),
    "registry_lookup": ("open_clip", ["elip-half-ViT-B-32 prunes ViT-B-32 of open_clip", "cosine"]),
    "image_only_inference": (
        "open_clip",
        ["tokens inside the blocks", "of the operations", "cosine"],
    ),
    "comparing_reducers": ("open_clip", ["elip ", "evit ", "tome ", "random "]),
}


def test_every_example_is_here_and_in_the_readme() -> None:
    files = {path.stem for path in FOLDER.glob("*.py")}
    tested_apart = {"demo", "finetune_transformers", "finetune_blip", "compare_finetuning"}
    tested_apart |= {"embed_folder", "embed_ray"}
    assert files == {*EXPECTED, *tested_apart}
    readme = (FOLDER / "README.md").read_text()
    assert all(f"`{name}.py`" in readme for name in files)


def start(name: str) -> str:
    command = [sys.executable, str(FOLDER / f"{name}.py")]
    made = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert made.returncode == 0, made.stderr
    return made.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", list(EXPECTED))
def test_example(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of each host as a command; the others in this process, which has imported the host."""
    host, expected = EXPECTED[name]
    pytest.importorskip(host)
    if name in ("registry_lookup", "lavis_finetuning"):
        said = start(name)
    else:
        monkeypatch.setattr(sys, "argv", [f"{name}.py"])
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
        said = capsys.readouterr().out
    for text in expected:
        assert text in said, said
