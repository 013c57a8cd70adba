"""Faults of LAVIS 1.0.2 that keep its runner from other devices, mended while ours runs.

The same mends are in `patches/lavis-1.0.2`, for people with their own checkout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from lavis.common import logger
from lavis.common.dist_utils import is_dist_avail_and_initialized
from lavis.runners import runner_base
from lavis.tasks import base_task
from torch import distributed as dist

from elip_plugin.patching.monkeypatch import replaced


@contextmanager
def any_device(device: torch.device, start_epoch: Callable[[], int]) -> Iterator[None]:
    """Let LAVIS' runner work on this device, in one process or several, inside the context.

    Args:
        device: Where the model is.
        start_epoch: Gives the epoch at which training starts, once that is known.

    Yields:
        Nothing.
    """

    def iter_loader(loader: Any, use_distributed: bool) -> Any:
        return _start_at(start_epoch(), loader, use_distributed)

    seams: list[tuple[Any, str, Any]] = [
        # runner_base.py:406 waits for other processes even where there are none.
        (runner_base, "dist", SimpleNamespace(barrier=_barrier)),
        # logger.py:43 makes a CUDA tensor whatever the process group can carry.
        (logger.SmoothedValue, "synchronize_between_processes", _synchronize),
        # dataloader_utils.py:79: after a resume the sampler would shuffle as in epoch 0.
        (runner_base, "IterLoader", iter_loader),
    ]
    if device.type != "cuda":
        load, prepare = runner_base.DataLoader, base_task.prepare_sample
        seams += [
            # dataloader_utils.py:56 opens a CUDA stream.
            (runner_base, "PrefetchLoader", lambda loader: loader),
            (runner_base, "DataLoader", lambda *a, **kw: load(*a, **{**kw, "pin_memory": False})),
            # base_task.py:80 takes CUDA for granted in evaluation.
            (base_task, "prepare_sample", lambda s, cuda_enabled: prepare(s, cuda_enabled=False)),
        ]
    with ExitStack() as stack:
        for owner, name, value in seams:
            stack.enter_context(replaced(owner, name, value))
        yield


def _barrier() -> None:
    if is_dist_avail_and_initialized():
        dist.barrier()


def _synchronize(self: Any) -> None:
    """Sum a meter over all processes, on a device that their backend carries."""
    if not is_dist_avail_and_initialized():
        return
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    sums = torch.tensor([self.count, self.total], dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    self.count, self.total = int(sums[0]), float(sums[1])


_IterLoader = runner_base.IterLoader


def _start_at(epoch: int, loader: Any, use_distributed: bool) -> Any:
    if hasattr(loader.sampler, "set_epoch"):
        loader.sampler.set_epoch(epoch)
    endless = _IterLoader(loader, use_distributed=use_distributed)
    endless._epoch = epoch
    return endless
