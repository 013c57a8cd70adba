"""LAVIS' epoch runner on one CPU, on several processes and on GPUs, with runs that resume."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
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
from elip_plugin.hosts.lavis.runtime.checkpoint import load_checkpoint, save_checkpoint
from elip_plugin.hosts.lavis.runtime.mends import any_device

NAME = "elip_runner"
"""What a run section asks for: `runner: elip_runner`."""

LATEST = "latest"

log = logging.getLogger("elip_plugin")


class ElipRunner(RunnerBase):
    """`RunnerBase`, for any device.

    A relative `output_dir` is relative to the working directory. Each part of the loss is
    logged. After each epoch there is a checkpoint with all that a run needs to go on, the
    momentum twin included: `checkpoint_<epoch>.pth`, or with validation splits
    `checkpoint_latest.pth` beside LAVIS' `checkpoint_best.pth`.

    Args:
        cfg: As in LAVIS.
        task: As in LAVIS.
        model: As in LAVIS.
        datasets: As in LAVIS.
        job_id: As in LAVIS.

    Raises:
        ConfigError: If the run section asks for what is not there.
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
        with any_device(self.device, lambda: self.start_epoch):
            super().train()

    def evaluate(self, cur_epoch: Any = "best", skip_reload: bool = False) -> Any:
        """Evaluate the test splits.

        Args:
            cur_epoch: As in LAVIS.
            skip_reload: As in LAVIS.

        Returns:
            Scores by split.
        """
        with any_device(self.device, lambda: self.start_epoch):
            self.test_logs = super().evaluate(cur_epoch, skip_reload) or {}
        return self.test_logs

    def train_epoch(self, epoch: int) -> dict[str, str]:
        """Train one epoch.

        Args:
            epoch: Its number, from 0.

        Returns:
            LAVIS' averages, and those of each part of the loss in this process.
        """
        parts = _LossParts()
        hook = self.unwrap_dist_model(self.model).register_forward_hook(parts)
        try:
            stats = super().train_epoch(epoch)
        finally:
            hook.remove()
        means = parts.means()
        shown = {"loss": stats["loss"], **means}
        log.info("epoch %d: %s", epoch, ", ".join(f"{k} {v}" for k, v in shown.items()))
        if self.valid_splits:
            self._save(LATEST, epoch)
        return {**stats, **means}

    def eval_epoch(self, split_name: str, cur_epoch: Any, skip_reload: bool = False) -> Any:
        """Evaluate one split.

        Args:
            split_name: Its name.
            cur_epoch: As in LAVIS.
            skip_reload: As in LAVIS.

        Returns:
            Its scores, if the task reports any in this process.
        """
        scores = super().eval_epoch(split_name, cur_epoch, skip_reload)
        if split_name == "val" and scores is not None:
            self.val_metric = float(scores["agg_metrics"])
        return scores

    def _save_checkpoint(self, cur_epoch: int, is_best: bool = False) -> None:
        if is_best:
            # LAVIS forgets over a resume what the best was.
            metric = self.val_metric
            if metric is not None and self.best is not None and metric <= self.best:
                return
            self.best = metric
        self._save("best" if is_best else str(cur_epoch), cur_epoch)

    def _save(self, name: str, epoch: int) -> None:
        if is_main_process():
            save_checkpoint(self, Path(self.output_dir) / f"checkpoint_{name}.pth", epoch)

    def _load_checkpoint(self, url_or_filename: str) -> None:
        load_checkpoint(self, Path(url_or_filename))
        if self.start_epoch >= self.max_epoch:
            raise ConfigError(
                f"{url_or_filename} has {self.start_epoch} epochs and max_epoch is "
                f"{self.max_epoch}: there is nothing left to train; raise run.max_epoch, or use "
                "`elip lavis evaluate --checkpoint`"
            )

    def _reload_best_model(self, model: Any) -> Any:
        if not os.path.exists(os.path.join(self.output_dir, "checkpoint_best.pth")):
            log.warning("No epoch was better than the best so far: testing the last one.")
            return model
        return super()._reload_best_model(model)


class _LossParts:
    """A forward hook that averages what a model returns as `loss_...`."""

    def __init__(self) -> None:
        self.sums: dict[str, Any] = defaultdict(float)
        self.calls = 0

    def __call__(self, module: Any, args: Any, output: Any) -> None:
        self.calls += 1
        for key in output if hasattr(output, "keys") else ():
            if key.startswith("loss_") and output[key] is not None:
                self.sums[key] = self.sums[key] + output[key].detach()

    def means(self) -> dict[str, str]:
        return {key: f"{float(total) / self.calls:.3f}" for key, total in self.sums.items()}


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
