"""Training progress from OpenCLIP's own learning-rate schedulers, which know step and total."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from elip_plugin.patching.progress import update_for

SCHEDULERS = ("cosine_lr", "const_lr", "const_lr_cooldown")
"""Makers of schedules in `open_clip_train.scheduler`: they take the optimizer and all steps, and
return a function that is called with each step before its forward."""


def install(module: Any) -> None:
    """Wrap the makers of schedules, before the training command imports them by name."""
    for name in SCHEDULERS:
        make = getattr(module, name, None)
        if make is not None and not hasattr(make, "__wrapped__"):
            setattr(module, name, _reporting(make))


def _reporting(make: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(make)

    @functools.wraps(make)
    def make_schedule(*args: Any, **kw: Any) -> Callable[[int], Any]:
        adjust = make(*args, **kw)
        given = signature.bind(*args, **kw).arguments
        groups, total = given["optimizer"].param_groups, given["steps"]
        trained = [parameter for group in groups for parameter in group["params"]]

        @functools.wraps(adjust)
        def adjust_and_report(step: int) -> Any:
            update_for(trained, step, total)
            return adjust(step)

        return adjust_and_report

    return make_schedule
