"""Two processes (gloo): unpruned training is LAVIS' own, and no choice depends on the split."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lavis")

import lavis_runs as runs

WORKER = """
import os, sys, torch
import lavis_runs as runs
from pathlib import Path
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
from omegaconf import OmegaConf
import lavis
from lavis.common.registry import registry
from recorders import recorded_choices
from elip_plugin import find_handle

folder = Path(sys.argv[1])
sharp = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
# Double precision: products round differently for other batch sizes, which could turn a near tie.
images = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(1)).double()
captions = [f"a {w} thing on the {w} table" for w in runs.WORDS]
recording = recorded_choices()
kept = recording.__enter__()

def model(arch):
    section = runs.model_section(arch, folder)
    if "bert" in section:
        section["bert"].update(sharp)
    patched = registry.get_model_class(arch)
    defaults = OmegaConf.load(patched.default_config_path(section["model_type"])).model
    torch.manual_seed(0)
    return patched.from_config(OmegaConf.merge(defaults, section)).double().train()

def losses_and_gradients(net, rows):
    torch.manual_seed(2)  # negatives and masked words are drawn
    samples = {"image": images[rows], "text_input": captions[rows], "epoch": 0, "iters": 1}
    loss = net({**samples, "num_iters_per_epoch": 4})["loss"]
    loss.backward()
    return loss.detach(), [p.grad for p in net.parameters() if p.grad is not None]

def choices(net, rows):
    kept.clear()
    losses_and_gradients(net, rows)
    assert len(kept) == 3
    return [selection.kept for selection in kept]

def same(left, right):
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right))

archs = sys.argv[2:]
whole = {arch: choices(model(arch), slice(0, 8)) for arch in archs}
dist.init_process_group("gloo")
rank = dist.get_rank()
rows = slice(4 * rank, 4 * rank + 4)
for arch in archs:
    stock, unpruned = model(arch), model(arch)
    find_handle(stock).remove()
    kept.clear()
    with find_handle(unpruned).disabled():
        loss, gradients = losses_and_gradients(DDP(unpruned), rows)
    expected, expected_gradients = losses_and_gradients(DDP(stock), rows)
    assert torch.equal(loss, expected) and same(gradients, expected_gradients), arch
    assert not kept
    of_rank = choices(DDP(model(arch)), rows)
    assert same(of_rank, [stage[rows] for stage in whole[arch]]), arch
    print(f"{arch} on rank {rank} is right", flush=True)
dist.barrier()
dist.destroy_process_group()
# All has been checked. Now and then a thread of some library aborts the process when the
# interpreter ends ("terminate called without an active exception").
os._exit(0)
"""

ARCHS = ("elip_albef_pretrain", "elip_blip_pretrain", "elip_clip")


@pytest.mark.slow
@pytest.mark.pins
def test_unpruned_is_stock_and_the_choice_is_per_image(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    runs.write_data(tmp_path)
    path = f"{Path(runs.__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *launch, str(script), str(tmp_path), *ARCHS],
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for arch in ARCHS:
        for rank in (0, 1):
            assert f"{arch} on rank {rank} is right" in done.stdout
