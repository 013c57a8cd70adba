"""Checkpoints that a run can go on from: LAVIS leaves out the momentum twin."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch

from elip_plugin.errors import ConfigError

log = logging.getLogger("elip_plugin")


def save_checkpoint(runner: Any, path: Path, epoch: int) -> None:
    """Write a checkpoint; an older file of the name stays whole until the new one is.

    Args:
        runner: A `RunnerBase`.
        path: Where to write.
        epoch: The epoch that has just been trained.
    """
    state = {
        "model": runner.unwrap_dist_model(runner.model).state_dict(),
        "optimizer": runner.optimizer.state_dict(),
        "scaler": runner.scaler.state_dict() if runner.scaler else None,
        "config": runner.config.to_dict(),
        "epoch": epoch,
        "best": runner.best,
    }
    scratch = path.with_suffix(".tmp")
    torch.save(state, scratch)
    os.replace(scratch, path)
    log.info("Saved %s after epoch %d.", path, epoch)


def load_checkpoint(runner: Any, path: Path) -> None:
    """Take up a run where a checkpoint left it.

    Args:
        runner: A `RunnerBase`.
        path: A checkpoint of `save_checkpoint`.

    Raises:
        ConfigError: If it does not hold all of this model.
    """
    state = torch.load(path, map_location=runner.device)
    try:
        runner.unwrap_dist_model(runner.model).load_state_dict(state["model"])
    except RuntimeError as error:
        raise ConfigError(
            f"{path} does not fit this model; a run can go on only from a checkpoint of "
            f"elip_runner with the same model section: {error}"
        ) from error
    runner.optimizer.load_state_dict(state["optimizer"])
    if runner.scaler and state.get("scaler"):
        runner.scaler.load_state_dict(state["scaler"])
    runner.start_epoch, runner.best = state["epoch"] + 1, state.get("best")
    log.info("Going on from %s at epoch %d.", path, runner.start_epoch)
