"""The training step of several processes together; each is started by `torchrun`."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from elip_plugin import create
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


def time_ddp_step(
    model: str, names: Sequence[str], batch: int, device: str, rounds: int, image_size: int | None
) -> tuple[int, dict[str, float]]:
    """Return the number of processes; in the first one also the median seconds of each variant."""
    local, on_gpu = int(os.environ["LOCAL_RANK"]), device == "cuda"
    if on_gpu:
        torch.cuda.set_device(local)
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    place = f"cuda:{local}" if on_gpu else "cpu"
    host_model = create(model, image_size=image_size, device=place)
    made = make_variants(host_model, names, batch=batch, precision="bf16")
    optimizer = torch.optim.AdamW(host_model.model.parameters(), lr=1e-6)
    seconds: dict[str, float] = {}
    for name, variant in made.items():
        variant.host_model.model.train()
        wrapped = DistributedDataParallel(
            Step(variant), device_ids=[local] if on_gpu else None, find_unused_parameters=True
        )
        # Not in turn: two wrappers of the same weights would each wait for the other's gradients.
        times = time_in_turn({name: timed(partial(_step, wrapped, optimizer))}, rounds)
        seconds[name] = statistics.median(times[name])
        del wrapped
    processes, first = distributed.get_world_size(), distributed.get_rank() == 0
    distributed.barrier()
    distributed.destroy_process_group()
    return processes, seconds if first else {}


def _step(wrapped: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(wrapped())
    optimizer.step()
