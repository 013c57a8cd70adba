"""Two and four processes (gloo): the loss, gradients and choices of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.faults.counting import is_long, tried

pytest.importorskip("open_clip")

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4] if is_long() else [2])
def test_as_one_process(processes: int) -> None:
    pytest.importorskip("torch", minversion="2.9")  # where FSDP2 leaves scalars out
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    script = ["-m", "faults.ranks", *(["all"] if is_long() else [])]
    done = subprocess.run(
        [sys.executable, *launch, *script], env=env, capture_output=True, text=True, timeout=3600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    right = done.stdout.count("right: ")
    assert right >= 30
    tried(f"steps of {processes} processes", right)
