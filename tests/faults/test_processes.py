"""Two and four processes (gloo): the loss, gradients and choices of one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import elip_plugin
from benchmarks.faults.counting import is_long, tried
from benchmarks.faults.kept import DRAWN
from elip_plugin.reducers import reducers

pytest.importorskip("open_clip")

Make = Callable[..., Any]
Pairs = tuple[torch.Tensor, torch.Tensor]
ROOT = Path(__file__).parents[2]
LIMIT = 3600 if is_long() else 600
"""Seconds, of what waits for ever."""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4] if is_long() else [2])
def test_as_one_process(processes: int) -> None:
    pytest.importorskip("torch", minversion="2.9")  # where FSDP2 leaves scalars out
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    script = ["-m", "faults.ranks", *(["all"] if is_long() else [])]
    done = subprocess.run(
        [sys.executable, *launch, *script], env=env, capture_output=True, text=True, timeout=LIMIT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    right = done.stdout.count("right: ")
    assert right >= (250 if is_long() else 20)
    tried(f"steps of {processes} processes", right)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", reducers())
def test_a_second_pass(name: str, tiny_clip: Make, pairs: Pairs) -> None:
    """As many tokens; the same, unless the reducer draws, of which docs/open_clip.md says what."""
    model = tiny_clip()
    handle = elip_plugin.apply(model, {"reducer": name})
    passes = []
    for context in (torch.no_grad(), torch.enable_grad()):
        with context, handle.trace() as trace:
            model(*pairs)
        passes.append([s.kept if s.groups is None else s.groups for s in trace.stages])
    first, second = passes
    assert [kept.shape for kept in first] == [kept.shape for kept in second] != []
    assert all(map(torch.equal, first, second)) == (name not in DRAWN)
    tried("second passes over a batch")
