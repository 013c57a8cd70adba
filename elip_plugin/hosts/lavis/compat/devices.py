"""LAVIS' runner on other devices than CUDA's, and where a run resumes."""

from __future__ import annotations

from typing import Any

from elip_plugin.hosts.lavis.compat.fixes import Users, running


def iter_loader(theirs: Any, runner: Any) -> Any:
    """Return LAVIS' endless loader, which starts at the runner's epoch."""

    def start(loader: Any, use_distributed: bool) -> Any:
        if hasattr(loader.sampler, "set_epoch"):
            loader.sampler.set_epoch(runner.start_epoch)
        endless = theirs(loader, use_distributed=use_distributed)
        endless._epoch = runner.start_epoch
        return endless

    return start


def evaluate(theirs: Any, users: Users) -> Any:
    """Return `RunnerBase.evaluate`, which `evaluate.py` calls whatever the config's runner."""

    def evaluate_anywhere(runner: Any, *args: Any, **options: Any) -> Any:
        if runner.cuda_enabled or not users.includes(runner._model):
            return theirs(runner, *args, **options)
        with running(runner):
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
