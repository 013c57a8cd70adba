"""A checkout of LAVIS: its own `train.py` with our archs.

`ELIP_LAVIS_CHECKOUT` names the folder that they are in.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.version import Version

CHECKOUT = os.environ.get("ELIP_LAVIS_CHECKOUT", "")
pytestmark = pytest.mark.skipif(not CHECKOUT, reason="ELIP_LAVIS_CHECKOUT names no checkout")
if CHECKOUT:
    import lavis_runs as runs

    # Its BLIP models refuse newer ones, those of its own requirements included.
    BLIP = Version(metadata.version("transformers")) < Version("4.27")


def run(config: Path, *command: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, *command, "--cfg-path", str(config))
    env = {**os.environ, "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{CHECKOUT}"}
    return subprocess.run(command, cwd=CHECKOUT, env=env, capture_output=True, text=True)


def scores(output: str) -> dict[str, float]:
    """The last retrieval scores that LAVIS logged."""
    found: dict[str, float] = json.loads(
        re.findall(r"\{'txt_r1'.*\}", output)[-1].replace("'", '"')
    )
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_data(tmp_path_factory.mktemp("data"))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["elip_albef_pretrain", "elip_blip_pretrain", "elip_clip"])
def test_its_own_script_trains(arch: str, data: Path, tmp_path: Path) -> None:
    """And `elip lavis evaluate` gives the scores that it ended with."""
    if "clip" in arch and not list(Path(CHECKOUT).glob("lavis/models/clip_models/*.txt.gz")):
        pytest.skip("this checkout is without CLIP's vocabulary")
    config = runs.write_config(tmp_path / "run.yaml", runs.model_section(arch, data), data)
    trained = run(config, "train.py")
    if "blip" in arch and not BLIP:
        assert trained.returncode and "not compatible with transformers>=4.27" in trained.stderr
        return
    assert trained.returncode == 0, trained.stderr[-3000:]
    assert "ELIP prunes the vision tower by the caption: 17 tokens -> 16" in trained.stderr
    saved = sorted((tmp_path / "output").rglob("*.pth"))
    assert [path.name for path in saved] == ["checkpoint_0.pth", "checkpoint_1.pth"]
    command = ["-m", "elip_plugin", "lavis", "evaluate", "--checkpoint", str(saved[1])]
    evaluated = run(config, *command)
    assert evaluated.returncode == 0, evaluated.stderr[-3000:]
    assert scores(evaluated.stderr) == scores(trained.stderr)
