"""LAVIS' runner on other devices than CUDA's and in one process: the "run" part of `fixes`."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from lavis.common.dist_utils import is_dist_avail_and_initialized
from torch import distributed

from elip_plugin.hosts.lavis.compat.fixes import running


def _barrier() -> None:
    if is_dist_avail_and_initialized():
        distributed.barrier()


dist = SimpleNamespace(barrier=_barrier)
"""All that `runner_base` needs of `torch.distributed`."""


def synchronize(self: Any) -> None:
    """Sum a `SmoothedValue` over all processes, on a device that their backend carries."""
    if not is_dist_avail_and_initialized():
        return
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    sums = torch.tensor([self.count, self.total], dtype=torch.float64, device=device)
    distributed.all_reduce(sums)
    self.count, self.total = int(sums[0]), float(sums[1])


def iter_loader(theirs: Any, runner: Any) -> Any:
    """Return LAVIS' endless loader, which starts at the runner's epoch."""

    def start(loader: Any, use_distributed: bool) -> Any:
        if hasattr(loader.sampler, "set_epoch"):
            loader.sampler.set_epoch(runner.start_epoch)
        endless = theirs(loader, use_distributed=use_distributed)
        endless._epoch = runner.start_epoch
        return endless

    return start


def evaluate(theirs: Any) -> Any:
    """Return `RunnerBase.evaluate`, which `evaluate.py` calls whatever the config's runner."""

    def evaluate_anywhere(runner: Any, *args: Any, **options: Any) -> Any:
        with nullcontext() if runner.cuda_enabled else running(runner):
            return theirs(runner, *args, **options)

    return evaluate_anywhere


def unwrapped(theirs: Any, runner: Any) -> property:
    """Return `RunnerBase.model`, which is the model itself."""
    return property(lambda runner: runner._model)


def no_prefetching(theirs: Any, runner: Any) -> Any:
    """Return what stands in for `PrefetchLoader`: the loader itself."""
    return lambda loader: loader


def no_pinned_memory(theirs: Any, runner: Any) -> Any:
    """Return LAVIS' data loader without pinned memory."""
    return lambda *args, **options: theirs(*args, **{**options, "pin_memory": False})


def no_cuda(theirs: Any, runner: Any) -> Any:
    """Return LAVIS' `prepare_sample`, which leaves samples where they are."""
    return lambda samples, cuda_enabled: theirs(samples, cuda_enabled=False)
