"""`elip lavis train` and `evaluate`: the steps of LAVIS' train.py, which its wheel lacks."""

from __future__ import annotations

import logging
import os
import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from lavis.common.config import Config
from lavis.common.dist_utils import get_rank, init_distributed_mode, is_main_process
from lavis.common.logger import setup_logger
from lavis.common.registry import registry
from lavis.common.utils import now
from lavis.tasks import setup_task
from torch import distributed as dist

from elip_plugin.errors import ConfigError
from elip_plugin.hosts.lavis.compat.run_config import check_run_config
from elip_plugin.patching.checkpoints import load_checkpoint

log = logging.getLogger("elip_plugin")


def run(
    cfg_path: Path, options: Sequence[str], *, evaluate: bool, checkpoint: Path | None = None
) -> dict[str, Any]:
    """Train or evaluate a model as a LAVIS run config says, with overrides like run.max_epoch=1.

    Without a checkpoint, evaluation is of what the config loads. Returns the scores by test split,
    which only the first process has. Raises a ConfigError before anything is written.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module="lavis|fairscale")
    check_run_config(cfg_path, options)
    if checkpoint is not None and not checkpoint.is_file():
        raise ConfigError(f"checkpoint {str(checkpoint)!r} is no file")
    cfg = Config(SimpleNamespace(cfg_path=str(cfg_path), options=list(options)))
    cfg.run_cfg.evaluate = evaluate
    cfg.run_cfg.setdefault("resume_ckpt_path", None)
    alone = not dist.is_initialized()
    _join_processes(cfg.run_cfg)
    try:
        return _run(cfg, evaluate=evaluate, checkpoint=checkpoint)
    finally:
        if alone and dist.is_initialized():  # before the interpreter ends its threads
            dist.destroy_process_group()


def _join_processes(run: Any) -> None:
    """Join the other processes that were started, if any were; LAVIS joins GPUs only."""
    if str(run.device).startswith("cuda"):
        init_distributed_mode(run)
        return
    if max(int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "SLURM_NTASKS")) > 1:
        raise ConfigError(
            f"run.device is {run.device!r}, and LAVIS joins several processes on GPUs only: start "
            "one process, or set run.device to cuda"
        )
    run.distributed = False


def _run(cfg: Any, *, evaluate: bool, checkpoint: Path | None) -> dict[str, Any]:
    seed = int(cfg.run_cfg.get("seed", 42)) + get_rank()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    # Numbers below 1e-38, which small models from scratch have, make a CPU many times slower.
    torch.set_flush_denormal(True)
    setup_logger()
    logging.getLogger("elip_plugin").setLevel(logging.INFO if is_main_process() else logging.WARN)
    cfg.pretty_print()
    task = setup_task(cfg)
    datasets = task.build_datasets(cfg)
    model = task.build_model(cfg)
    if checkpoint is not None:
        state = load_checkpoint(checkpoint)
        try:
            model.load_state_dict(state.get("model", state))
        except RuntimeError as error:
            raise ConfigError(f"{checkpoint} does not fit this model section: {error}") from error
    runner_class = registry.get_runner_class(cfg.run_cfg.get("runner", "elip_runner"))
    runner = runner_class(cfg=cfg, job_id=now(), task=task, model=model, datasets=datasets)
    if evaluate:
        return runner.evaluate(skip_reload=True) or {}
    runner.train()
    return getattr(runner, "test_logs", {})
