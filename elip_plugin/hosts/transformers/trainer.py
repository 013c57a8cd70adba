"""What transformers' Trainer tells a pruned model: how far the training is."""

from __future__ import annotations

from typing import Any

import transformers

from elip_plugin.patching.progress import update_for


class TrainerCallback(transformers.TrainerCallback):
    """Reports the Trainer's steps to the pruned towers that it trains.

    Only a configuration with a schedule (`warmup`, `final_unpruned`, `text_anneal`) needs it:
    `Trainer(..., callbacks=[TrainerCallback()])`.
    """

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Report the optimizer steps made so far, before each step's forwards.

        Args:
            args: The training's arguments.
            state: Its steps: `global_step` of `max_steps`.
            control: Not used.
            **given: What the Trainer adds, the model among it.
        """
        update_for(given["model"].parameters(), state.global_step, state.max_steps)
