"""LAVIS' own runners: on other devices than CUDA's, where a run resumes, and their progress."""

from __future__ import annotations

from typing import Any

from elip_plugin.hosts.lavis.compat.fixes import RunnerHooks, running


def iter_loader(theirs: Any, runner: Any) -> Any:
    """Return LAVIS' endless loader, which starts at the runner's epoch."""

    def start(loader: Any, use_distributed: bool) -> Any:
        if hasattr(loader.sampler, "set_epoch"):
            loader.sampler.set_epoch(runner.start_epoch)
        endless = theirs(loader, use_distributed=use_distributed)
        endless._epoch = runner.start_epoch
        return endless

    return start


def evaluate(theirs: Any, hooks: RunnerHooks) -> Any:
    """Return `RunnerBase.evaluate`, which `evaluate.py` calls whatever the config's runner."""

    def evaluate_anywhere(runner: Any, *args: Any, **options: Any) -> Any:
        if runner.cuda_enabled or not hooks.includes(runner._model):
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


def reporting(lr_scheduler: property, hooks: RunnerHooks) -> property:
    """Return `RunnerBase.lr_scheduler`, whose steps also report their progress.

    All runners of LAVIS call their learning-rate schedule before each forward, with the epoch and
    the iteration. How many of each there are, the runner knows.
    """

    def get(runner: Any) -> Any:
        schedule = lr_scheduler.fget(runner)  # type: ignore[misc]
        included = hooks.includes(runner._model)
        return _ReportingSchedule(schedule, runner, hooks) if included else schedule

    return property(get, doc=lr_scheduler.__doc__)


class _ReportingSchedule:
    """A learning-rate schedule of LAVIS that passes its progress on."""

    def __init__(self, schedule: Any, runner: Any, hooks: RunnerHooks) -> None:
        self.schedule, self.runner, self.report = schedule, runner, hooks.report
        groups = runner.optimizer.param_groups
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        # RunnerIter calls so many iterations an epoch.
        iterations = getattr(runner, "iters_per_inner_epoch", None) or len(runner.train_loader)
        self.steps_per_epoch = max(1, iterations // runner.accum_grad_iters)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.schedule, name)

    def step(self, cur_epoch: int, cur_step: int) -> None:
        """Set the learning rate and the progress of one iteration."""
        self.schedule.step(cur_epoch=cur_epoch, cur_step=cur_step)
        done = min(cur_step // self.runner.accum_grad_iters, self.steps_per_epoch)
        total = self.runner.max_epoch * self.steps_per_epoch
        self.report(self.parameters, cur_epoch * self.steps_per_epoch + done, total)
