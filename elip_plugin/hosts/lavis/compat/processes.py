"""LAVIS in one process, and in several that are joined by gloo."""

from __future__ import annotations

import os
from typing import Any

import torch
from lavis.common.dist_utils import (
    get_rank,
    get_world_size,
    init_distributed_mode,
    is_dist_avail_and_initialized,
    setup_for_distributed,
)
from lavis.models.clip_models.loss import ClipLoss
from torch import distributed

from elip_plugin.errors import ConfigError


class _Distributed:
    """`torch.distributed`, where no process group means one process."""

    get_rank = staticmethod(get_rank)
    get_world_size = staticmethod(get_world_size)

    def barrier(self) -> None:
        """Wait for the others, if there are any."""
        if is_dist_avail_and_initialized():
            distributed.barrier()

    def __getattr__(self, name: str) -> Any:
        return getattr(distributed, name)


dist = _Distributed()


def gathering(theirs: Any, hooks: Any) -> Any:
    """Return LAVIS' `all_gather_with_grad`, which without a process group has nothing to gather."""
    return lambda tensors: theirs(tensors) if is_dist_avail_and_initialized() else tensors


def clip_loss(theirs: property, hooks: Any) -> property:
    """Return `CLIP.loss`, which without a process group compares the pairs of this process."""

    def loss(model: Any) -> Any:
        if is_dist_avail_and_initialized():
            return theirs.fget(model)  # type: ignore[misc]
        return ClipLoss()

    return property(loss, doc=theirs.__doc__)


def synchronize(self: Any) -> None:
    """Sum a `SmoothedValue` over all processes, on a device that their backend carries."""
    if not is_dist_avail_and_initialized():
        return
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    sums = torch.tensor([self.count, self.total], dtype=torch.float64, device=device)
    distributed.all_reduce(sums)
    self.count, self.total = int(sums[0]), float(sums[1])


def join_processes(run_cfg: Any) -> None:
    """Join the other processes that were started, if any were; LAVIS itself knows nccl only."""
    if str(run_cfg.device).startswith("cuda"):
        init_distributed_mode(run_cfg)
        return
    if "RANK" not in os.environ:
        if int(os.environ.get("SLURM_NTASKS", "1")) > 1:
            raise ConfigError("several processes on CPUs are started by torchrun, not by srun")
        run_cfg.distributed = False
        return
    run_cfg.rank, run_cfg.gpu = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    run_cfg.world_size, run_cfg.distributed = int(os.environ["WORLD_SIZE"]), True
    run_cfg.dist_backend = "gloo"
    url, world = run_cfg.get("dist_url", "env://"), run_cfg.world_size
    distributed.init_process_group("gloo", init_method=url, world_size=world, rank=run_cfg.rank)
    setup_for_distributed(run_cfg.rank == 0)
