"""What transformers' Trainer tells a pruned model: how far the training is."""

from __future__ import annotations

from typing import Any

from elip_plugin.errors import MissingHostError
from elip_plugin.hosts.transformers import HOST
from elip_plugin.patching.install import find_pruner
from elip_plugin.patching.progress import update_for

try:
    import transformers
except ModuleNotFoundError as error:
    raise MissingHostError(f"TrainerCallback is for transformers; run: {HOST.install}") from error


class TrainerCallback(transformers.TrainerCallback):
    """Reports the Trainer's steps to the pruned towers that it trains.

    Only a configuration with a schedule (`warmup`, `final_unpruned`, `text_anneal`) needs it:
    `Trainer(..., callbacks=[elip_plugin.TrainerCallback()])`. A training that goes on from a
    checkpoint goes on in the schedule, too.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Refuse a training of a model that is not pruned.

        Args:
            args: The training's arguments.
            state: Its steps.
            control: Not used.
            **given: What the Trainer adds, the model among it. UnsupportedModelError if nothing of
                the model is pruned.
        """
        find_pruner(given["model"])

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Report the optimizer steps made so far, before each step's forwards.

        Args:
            args: The training's arguments.
            state: Its steps: `global_step` of `max_steps`.
            control: Not used.
            **given: What the Trainer adds, the model among it.
        """
        update_for(given["model"].parameters(), state.global_step, state.max_steps)
