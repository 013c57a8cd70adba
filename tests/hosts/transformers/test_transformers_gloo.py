"""Two processes (gloo), DDP and FSDP2: their gradients are those of one process."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed import fsdp

pytest.importorskip("transformers", minversion="4.57")

WORKER = """
import os, sys
import torch
from torch import distributed as dist
from torch.distributed import fsdp
from torch.distributed.nn.functional import all_gather
from torch.nn.parallel import DistributedDataParallel as DDP
import elip_plugin
from elip_plugin.errors import UnsupportedModelError
from hosts.transformers.tiny import inputs, make, layers_of

torch.set_default_dtype(torch.float64)  # in which transformers 4 makes its mask

def pruned(family, reducer):
    # Double precision: products round differently for other batch sizes, which could turn a tie.
    model = make(family).double().train()
    handle = elip_plugin.apply(model, {"preset": "fast", "reducer": reducer})
    return model, handle

def run(net, handle, rows, gather):
    batch = {name: value[rows] for name, value in inputs(batch=8).items() if name != "return_loss"}
    batch["pixel_values"] = batch["pixel_values"].double()
    with handle.trace() as trace:
        out = net(**batch)
    images, texts = gather(out.image_embeds), gather(out.text_embeds)
    scores = 10 * images @ texts.T
    loss = torch.nn.functional.cross_entropy(scores, torch.arange(8))
    loss.backward()
    return loss.item(), [stage.kept for stage in trace.stages]

def whole(gradient):
    return gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient

def shard(model):
    for layer in layers_of(model):
        fsdp.fully_shard(layer)
    # It refuses scalars, as CLIP's scale of the logits is; that one takes no part in our loss.
    scalars = {p for p in model.parameters() if p.ndim == 0}
    fsdp.fully_shard(model, **({"ignored_params": scalars} if scalars else {}))
    return model

ways = {"DDP": lambda model: DDP(model, find_unused_parameters=True)}
if sys.argv[1] == "with FSDP2":
    ways["FSDP2"] = shard

dist.init_process_group("gloo")
rank = dist.get_rank()
rows = slice(4 * rank, 4 * rank + 4)
for family in sys.argv[2:]:
    for reducer in "elip", "evit":
        model, handle = pruned(family, reducer)
        expected, kept = run(model, handle, slice(0, 8), lambda x: x)
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        assert max(g.abs().max() for g in gradients.values()) > 1e-3
        for name, wrap in ways.items():
            model, handle = pruned(family, reducer)
            net = wrap(model)
            loss, own = run(net, handle, rows, lambda x: torch.cat(all_gather(x)))
            assert abs(loss - expected) < 1e-12, (name, loss, expected)
            assert all(torch.equal(a, b[rows]) for a, b in zip(own, kept, strict=True)), name
            found = {n: whole(p.grad) for n, p in model.named_parameters() if p.grad is not None}
            assert gradients.keys() <= found.keys()
            for key, gradient in gradients.items():
                torch.testing.assert_close(found[key], gradient, rtol=1e-9, atol=1e-12, msg=key)
            if name == "FSDP2":  # which changes the classes, too
                try:
                    handle.remove()
                except UnsupportedModelError as error:
                    assert "remove the wrapper first" in str(error)
                else:
                    raise AssertionError("a sharded model was turned back")
            print(f"{name} of {family} by {reducer} on rank {rank} is right", flush=True)
dist.barrier()
dist.destroy_process_group()
os._exit(0)  # see the test of LAVIS: now and then a thread aborts the process at its end
"""

FAMILIES = ("clip", "siglip", "blip")


def has_fsdp2() -> bool:
    """Whether torch has `fully_shard`, with what lets it leave scalars out."""
    shard = getattr(fsdp, "fully_shard", None)
    return shard is not None and "ignored_params" in inspect.signature(shard).parameters


@pytest.mark.slow
@pytest.mark.newest
def test_gradients_and_choices_are_those_of_one_process(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    tests = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(tests), "OMP_NUM_THREADS": "1"}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    ways = ["DDP", "FSDP2"] if has_fsdp2() else ["DDP"]
    command = [sys.executable, *launch, str(script), f"with {ways[-1]}", *FAMILIES]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    for family in FAMILIES:
        for way in ways:
            for rank in (0, 1):
                assert f"{way} of {family} by elip on rank {rank} is right" in done.stdout
