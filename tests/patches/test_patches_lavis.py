"""The patch for LAVIS' published release applies, and repairs what it says."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

if importlib.util.find_spec("lavis") is None:
    pytest.skip("LAVIS is not installed", allow_module_level=True)

FOLDER = Path(__file__).parents[2] / "patches" / f"lavis-{version('salesforce-lavis')}"
if not FOLDER.is_dir():
    pytest.skip("there are no patches for this salesforce-lavis", allow_module_level=True)

PATCHES = sorted(path.stem for path in FOLDER.glob("*.patch"))
TOOLS = {
    "patch": ["patch", "--fuzz=0", "-p1", "-i"],
    "git": ["git", "apply", "-p1"],
}
FAULTS = {
    "albef_nlvr": "TypeError: expected Tensor as element 0",
    "albef_vqa": "UnboundLocalError: .*'logits_m'",
    "blip_classification": "UnboundLocalError: .*'image_embeds_m'",
}
LEARNS = """
import sys, lavis, torch
import lavis_family as family
assert lavis.__file__.startswith(sys.argv[1])
model = family.stock(sys.argv[2], use_distill=False)
output, gradients = family.step(sys.argv[2], model)
assert any(grad.abs().sum() > 0 for grad in gradients.values())
"""


def installed() -> Path:
    spec = importlib.util.find_spec("lavis")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def copied(to: Path, *names: str, tool: str = "") -> Path:
    """A copy of LAVIS with patches."""
    tool = tool or next((tool for tool in TOOLS if shutil.which(tool)), "")
    if not shutil.which(tool):
        pytest.skip("neither patch nor git is installed")
    shutil.copytree(installed(), to / "lavis", ignore=lambda folder, _: ["__pycache__"])
    # Git would look for a repository above, and leave out what that one ignores.
    env = {**os.environ, "GIT_CEILING_DIRECTORIES": str(to.parent)}
    for name in names:
        command = [*TOOLS[tool], str(FOLDER / f"{name}.patch")]
        done = subprocess.run(command, cwd=to, env=env, capture_output=True, text=True)
        assert done.returncode == 0 and "offset" not in done.stdout, done.stdout + done.stderr
    return to


@pytest.mark.parametrize("tool", TOOLS)
def test_they_apply_cleanly(tmp_path: Path, tool: str) -> None:
    copied(tmp_path, *PATCHES, tool=tool)


@pytest.mark.parametrize("name", PATCHES)
def test_they_say_why(name: str) -> None:
    header = (FOLDER / f"{name}.patch").read_text().split("\n--- ")[0]
    assert re.search(r"^Mend: ", header)
    assert re.search(r"^Shows as: (\w*Error: |no error: )", header, re.M)
    assert re.search(r"^Upstream: (no upstream issue found|#\d+)", header, re.M)
    assert f"`{name}.patch`" in (FOLDER / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.pins
@pytest.mark.parametrize("arch", FAULTS)
def test_without_distillation_a_model_learns_once_it_is_patched(tmp_path: Path, arch: str) -> None:
    for names, expected in (((), FAULTS[arch]), (PATCHES, "")):
        place = copied(tmp_path / ("patched" if names else "published"), *names)
        tests = Path(__file__).parents[1]
        paths = os.pathsep.join(map(str, (place, tests, tests.parent)))
        done = subprocess.run(
            [sys.executable, "-c", LEARNS, str(place), arch],
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert (done.returncode == 0) == (not expected), done.stderr
        assert re.search(expected, done.stderr)
