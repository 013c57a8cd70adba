"""LAVIS' epoch runner on one CPU, on several processes and on GPUs, with runs that resume."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from lavis.common.dist_utils import is_main_process
from lavis.common.registry import registry
from lavis.runners.runner_base import RunnerBase
from lavis.tasks import RetrievalTask
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from elip_plugin.errors import ConfigError
from elip_plugin.hosts.lavis.compat.fixes import running
from elip_plugin.patching.checkpoints import load_checkpoint

NAME = "elip_runner"
"""The value of `runner` in a run section."""

log = logging.getLogger("elip_plugin")


class ElipRunner(RunnerBase):
    """`RunnerBase`, for any device.

    A relative `output_dir` is relative to the working directory. After each epoch there is a
    checkpoint with all that a run needs to resume, the momentum encoder included, which LAVIS
    leaves out: `checkpoint_<epoch>.pth`, or with validation splits `checkpoint_latest.pth` beside
    LAVIS' `checkpoint_best.pth`.

    Its arguments are LAVIS' own.
    """

    _model: nn.Module
    _wrapped_model: nn.Module | None

    def __init__(self, cfg: Any, task: Any, model: Any, datasets: Any, job_id: str) -> None:
        run = cfg.run_cfg
        _check(run)
        run.output_dir = str(Path(run.output_dir).absolute())
        super().__init__(cfg=cfg, task=task, model=model, datasets=datasets, job_id=job_id)
        self.best: float | None = None
        self.val_metric: float | None = None
        self.test_logs: dict[str, Any] = {}

    def setup_output_dir(self) -> None:
        """Make the output folders; LAVIS refuses a second run in one process."""
        for name in ("output_dir", "result_dir"):
            registry.mapping["paths"].pop(name, None)
        super().setup_output_dir()

    @property
    def model(self) -> nn.Module:
        """The model on its device, wrapped if there are several processes."""
        if self._wrapped_model is None:
            model = self._model = self._model.to(self.device)
            if self.use_distributed:
                gpus = [self.config.run_cfg.gpu] if self.cuda_enabled else None
                model = DistributedDataParallel(model, device_ids=gpus)
            self._wrapped_model = model
        return self._wrapped_model

    @property
    def use_dist_eval_sampler(self) -> bool:
        """Whether processes share an evaluation; retrieval compares all with all, and cannot."""
        shared = not isinstance(self.task, RetrievalTask)
        return bool(self.config.run_cfg.get("use_dist_eval_sampler", shared))

    def train(self) -> None:
        """Train and evaluate as the run section says."""
        with running(self):
            super().train()

    def evaluate(self, cur_epoch: Any = "best", skip_reload: bool = False) -> Any:
        """Evaluate the test splits; return their scores."""
        with running(self):
            self.test_logs = super().evaluate(cur_epoch, skip_reload) or {}
        return self.test_logs

    def train_epoch(self, epoch: int) -> dict[str, str]:
        """Train one epoch; return LAVIS' averages."""
        stats: dict[str, str] = super().train_epoch(epoch)
        log.info("epoch %d: loss %s", epoch, stats["loss"])
        if self.valid_splits:
            self._save("latest", epoch)
        return stats

    def eval_epoch(self, split_name: str, cur_epoch: Any, skip_reload: bool = False) -> Any:
        """Evaluate one split; return its scores if the task reports any in this process."""
        scores = super().eval_epoch(split_name, cur_epoch, skip_reload)
        if split_name == "val" and scores is not None:
            self.val_metric = float(scores["agg_metrics"])
        return scores

    def _save_checkpoint(self, cur_epoch: int, is_best: bool = False) -> None:
        if is_best:
            # LAVIS' own record of the best does not survive a resume.
            metric = self.val_metric
            if metric is not None and self.best is not None and metric <= self.best:
                return
            self.best = metric
        self._save("best" if is_best else str(cur_epoch), cur_epoch)

    def _save(self, name: str, epoch: int) -> None:
        if not is_main_process():
            return
        state = {
            "model": self.unwrap_dist_model(self.model).state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "config": self.config.to_dict(),
            "epoch": epoch,
            "best": self.best,
        }
        path = Path(self.output_dir) / f"checkpoint_{name}.pth"
        unfinished = path.with_suffix(".tmp")  # an older file stays whole until then
        torch.save(state, unfinished)
        os.replace(unfinished, path)
        log.info("Saved %s after epoch %d.", path, epoch)

    def _load_checkpoint(self, url_or_filename: str) -> None:
        state = load_checkpoint(url_or_filename)
        try:
            self.unwrap_dist_model(self.model).load_state_dict(state["model"])
        except RuntimeError as error:
            raise ConfigError(
                f"{url_or_filename} does not fit this model; a run can resume only from a "
                f"checkpoint of elip_runner with the same model section: {error}"
            ) from error
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        self.start_epoch, self.best = state["epoch"] + 1, state.get("best")
        log.info("Resuming from %s at epoch %d.", url_or_filename, self.start_epoch)
        if self.start_epoch >= self.max_epoch:
            raise ConfigError(
                f"{url_or_filename} has {self.start_epoch} epochs and max_epoch is "
                f"{self.max_epoch}: there is nothing left to train; raise run.max_epoch, or use "
                "`elip lavis evaluate --checkpoint`"
            )

    def _reload_best_model(self, model: Any) -> Any:
        path = Path(self.output_dir) / "checkpoint_best.pth"
        if path.is_file():
            model.load_state_dict(load_checkpoint(path)["model"])
        else:
            log.warning("No epoch was better than the best so far: testing the last one.")
        return model


def _check(run: Any) -> None:
    cuda = str(run.device).startswith("cuda")
    if cuda and not torch.cuda.is_available():
        raise ConfigError(
            f"run.device is {run.device!r}, but torch sees no GPU: set run.device to cpu "
            "(`run.device=cpu` at the end of the command)"
        )
    if run.get("amp", False) and not cuda:
        raise ConfigError("run.amp is for GPUs: LAVIS' scaler and autocast are CUDA's; set it off")
    path = run.get("resume_ckpt_path", None)
    if path is not None and not Path(path).is_file():
        raise ConfigError(f"run.resume_ckpt_path {path!r} is no file; name a checkpoint_*.pth")
