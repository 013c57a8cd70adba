"""A process of `torchrun` that times the training step of several processes together."""

from __future__ import annotations

import argparse
import json
import os
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from elip_plugin.hosts.registry import create
from elip_plugin.measure.speed import time_in_turn, timed
from elip_plugin.measure.variants import Variant, make_variants


class Step(nn.Module):
    """A variant's loss as a forward, which is what DistributedDataParallel wraps.

    The loss is that of each process' own batch: features are not gathered.
    """

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.model = variant.host_model.model
        self._variant = variant

    def forward(self) -> Tensor:
        """Compute the loss."""
        return self._variant.loss()


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Time the variants one after the other, in each process.

    Args:
        options: Of the command line.

    Returns:
        The number of processes, and the median seconds of each variant in this one.
    """
    local = int(os.environ["LOCAL_RANK"])
    on_gpu = options.device == "cuda"
    if on_gpu:
        torch.cuda.set_device(local)
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    device = f"cuda:{local}" if on_gpu else "cpu"
    host_model = create(options.model, image_size=options.image_size, device=device)
    names = options.variants.split(",")
    made = make_variants(host_model, names, batch=options.batch, precision="bf16")
    optimizer = torch.optim.AdamW(host_model.model.parameters(), lr=1e-6)
    seconds: dict[str, list[float]] = {}
    for name, variant in made.items():
        variant.host_model.model.train()
        wrapped = DistributedDataParallel(
            Step(variant), device_ids=[local] if on_gpu else None, find_unused_parameters=True
        )
        # Not in turn: two wrappers of the same weights would each wait for the other's gradients.
        seconds |= time_in_turn({name: timed(partial(_step, wrapped, optimizer))}, options.rounds)
        del wrapped
    world = distributed.get_world_size()
    distributed.barrier()
    distributed.destroy_process_group()
    return {
        "processes": world,
        "batch": options.batch,
        "seconds": {name: statistics.median(times) for name, times in seconds.items()},
    }


def _step(wrapped: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(wrapped())
    optimizer.step()


def main() -> None:
    """Run one process; the first one writes the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--variants", default="full,fast")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found = run(options)
    if os.environ["RANK"] == "0":
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "scaling.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
