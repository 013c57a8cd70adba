"""LAVIS' epoch runner on a CPU as on GPUs, with checkpoints that resume."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lavis.common.dist_utils import is_main_process
from lavis.runners import runner_base
from lavis.runners.runner_base import RunnerBase
from lavis.tasks import RetrievalTask, base_task
from torch import distributed

from elip_plugin.errors import ConfigError
from elip_plugin.files import replacing
from elip_plugin.patching.checkpoints import load_checkpoint
from elip_plugin.patching.monkeypatch import replaced

NAME = "elip_runner"
"""The value of `runner` in a run section."""

log = logging.getLogger("elip_plugin")


class ElipRunner(RunnerBase):
    """`RunnerBase`, for any device.

    A relative `output_dir` is relative to the working directory. Checkpoints hold all weights, the
    momentum encoder's included, which LAVIS leaves out and then cannot resume without.

    Its arguments are LAVIS' own.
    """

    def __init__(self, cfg: Any, task: Any, model: Any, datasets: Any, job_id: str) -> None:
        cfg.run_cfg.output_dir = str(Path(cfg.run_cfg.output_dir).absolute())
        super().__init__(cfg=cfg, task=task, model=model, datasets=datasets, job_id=job_id)
        self.test_logs: dict[str, Any] = {}
        if not self.cuda_enabled:  # LAVIS' `model` has none where it need not be moved
            self._wrapped_model = model

    @property
    def use_dist_eval_sampler(self) -> bool:
        """Whether processes share an evaluation; retrieval compares all with all, and cannot."""
        shared = not isinstance(self.task, RetrievalTask)
        return bool(self.config.run_cfg.get("use_dist_eval_sampler", shared))

    def train(self) -> None:
        """Train and evaluate as the run section says."""
        with _suited_to(self):
            super().train()

    def evaluate(self, cur_epoch: Any = "best", skip_reload: bool = False) -> Any:
        """Evaluate the test splits; return their scores."""
        with _suited_to(self):
            self.test_logs = super().evaluate(cur_epoch, skip_reload) or {}
        return self.test_logs

    def _save_checkpoint(self, cur_epoch: int, is_best: bool = False) -> None:
        if not is_main_process():
            return
        state = {
            "model": self.unwrap_dist_model(self.model).state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "config": self.config.to_dict(),
            "epoch": cur_epoch,
        }
        name = "best" if is_best else str(cur_epoch)
        path = Path(self.output_dir) / f"checkpoint_{name}.pth"
        with replacing(path) as unfinished:
            torch.save(state, unfinished)
        log.info("Saved %s after epoch %d.", path, cur_epoch)

    def _load_checkpoint(self, url_or_filename: str) -> None:
        state = load_checkpoint(url_or_filename)  # LAVIS would unpickle whatever is in it
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
        self.start_epoch = state["epoch"] + 1
        if self.start_epoch >= self.max_epoch:
            raise ConfigError(
                f"{url_or_filename} has {self.start_epoch} epochs and max_epoch is "
                f"{self.max_epoch}: there is nothing left to train; raise run.max_epoch, or use "
                "`elip lavis evaluate --checkpoint`"
            )


@contextmanager
def _suited_to(runner: ElipRunner) -> Iterator[None]:
    """Keep LAVIS' code off CUDA and other processes where a run has none."""
    with ExitStack() as stack:
        if not runner.use_distributed:
            alone = SimpleNamespace(**{**vars(distributed), "barrier": lambda: None})
            stack.enter_context(replaced(runner_base, "dist", alone))
        if not runner.cuda_enabled:
            stack.enter_context(replaced(runner_base, "PrefetchLoader", lambda loader: loader))
            stay = lambda samples, cuda_enabled: samples  # noqa: E731
            stack.enter_context(replaced(base_task, "prepare_sample", stay))
        yield
