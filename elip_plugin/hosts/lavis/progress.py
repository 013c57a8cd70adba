"""LAVIS' runners report how far a training of a pruned model is.

They have no hook, and give a model no number of all steps. But all of them call their learning-rate
schedule before each forward, with the epoch and the iteration.
"""

from __future__ import annotations

from typing import Any

from lavis.runners.runner_base import RunnerBase

from elip_plugin.patching.progress import update_for
from elip_plugin.patching.swap import find_patched

THEIRS: Any = RunnerBase.lr_scheduler


class _ReportingSchedule:
    """A learning-rate schedule of LAVIS that passes its progress on."""

    def __init__(self, schedule: Any, runner: Any) -> None:
        self.schedule, self.runner = schedule, runner
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
        update_for(self.parameters, cur_epoch * self.steps_per_epoch + done, total)


def _reporting(runner: Any) -> Any:
    """Return the schedule of a runner; that of a pruned model reports."""
    schedule = THEIRS.fget(runner)
    pruned = next(find_patched(runner._model), None) is not None
    return _ReportingSchedule(schedule, runner) if pruned else schedule


lr_scheduler = property(_reporting, doc=THEIRS.__doc__)
"""In place of `RunnerBase.lr_scheduler`."""
