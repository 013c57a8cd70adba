"""Two and four processes (gloo), the loss, gradients and choices of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.faults.counting import tried

pytest.importorskip("open_clip")

WORKER = """
import os, sys
import torch, open_clip
from torch import distributed as dist
from torch.distributed import fsdp
from torch.nn.parallel import DistributedDataParallel as DDP
from open_clip.loss import ClipLoss
import elip_plugin
from conftest import TINY

REDUCERS = ("elip", "gumbel", "evit", "unique", "tome", "pool", "until")
WAYS = ("DDP", "FSDP2", "FSDP2, activation checkpointing", "DDP, accumulation")
STEPS = (0, 5, 9)  # of ten: in the warmup, pruned, the unpruned end
BATCH = 8
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
part = BATCH // world
own_rows = slice(part * rank, part * rank + part)
torch.manual_seed(1)
images, texts = torch.randn(BATCH, 3, 64, 64).double(), torch.randint(1, 49000, (BATCH, 24))

def pruned(name):
    torch.manual_seed(0)
    small = {**TINY, "vision_cfg": {**TINY["vision_cfg"], "layers": 4}}
    model = open_clip.CLIP(**small, output_dict=True).double().train()
    stage = {"block": 1, "lookahead": 1, "keep": 0.5}
    config = {"reducer": name, "stages": [stage], "warmup": 0.4, "final_unpruned": 0.2}
    if name == "until":
        config |= {"reducer": "evit", "stages": [{**stage, "until": 3}]}
    if name == "pool":
        del config["warmup"], config["stages"]
    if name == "gumbel":
        config["text_weight"] = 0.0
        model.eval()  # in training it draws
        config["eval_mode"] = "image"
    return model, elip_plugin.apply(model, config)

def shard(model):
    for block in model.visual.transformer.resblocks:
        fsdp.fully_shard(block)
    fsdp.fully_shard(model, ignored_params={p for p in model.parameters() if p.ndim == 0})
    return model

def passed(net, handle, rows, loss_of):
    with handle.trace() as trace:
        out = net(images[rows], texts[rows])
    loss = loss_of(out["image_features"], out["text_features"], out["logit_scale"].detach())
    kept = [s.kept if s.groups is None else s.groups for s in trace.stages]
    return loss, kept

def step(net, handle, rows, loss_of, accumulate):
    if accumulate:  # OpenCLIP's first pass, whose choices the second must make again
        with torch.no_grad():
            _, first = passed(net, handle, rows, loss_of)
    loss, kept = passed(net, handle, rows, loss_of)
    loss.backward()
    if accumulate:
        assert len(first) == len(kept) and all(map(torch.equal, first, kept))
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    return mean.item() / world, kept

def whole(gradient):
    return gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient

alone = ClipLoss(cache_labels=False)
gathered = ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=world)
for name in REDUCERS:
    for at in STEPS:
        model, handle = pruned(name)
        handle.update_progress(at, 10)
        loss, kept = passed(model, handle, slice(0, BATCH), alone)
        loss.backward()
        expected = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        assert max(g.abs().max() for g in expected.values()) > 1e-4
        for way in WAYS:
            model, handle = pruned(name)
            handle.update_progress(at, 10)
            if "checkpointing" in way:
                model.set_grad_checkpointing(True)
            net = DDP(model, find_unused_parameters=True) if "DDP" in way else shard(model)
            found, own = step(net, handle, own_rows, gathered, "accumulation" in way)
            assert abs(found - loss.item()) < 1e-10, (name, way, at, found, loss.item())
            assert len(own) == len(kept)
            assert all(torch.equal(a, b[own_rows]) for a, b in zip(own, kept)), (name, way, at)
            for key, p in model.named_parameters():
                if key in expected and p.ndim:
                    torch.testing.assert_close(
                        whole(p.grad), expected[key], rtol=1e-8, atol=1e-11, msg=key
                    )
            if rank == 0:
                print(f"right: {name}, {way}, step {at} of 10", flush=True)
dist.barrier()
dist.destroy_process_group()
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_as_one_process(processes: int, tmp_path: Path) -> None:
    pytest.importorskip("torch", minversion="2.9")  # where FSDP2 leaves scalars out
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    root = Path(__file__).parents[2]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(root), str(root / "tests")])
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    done = subprocess.run(
        [sys.executable, *launch, str(script)], env=env, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    right = done.stdout.count("right: ")
    assert right == 7 * 4 * 3
    tried(f"steps of {processes} processes", right)
