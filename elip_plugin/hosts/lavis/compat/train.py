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

import lavis.common.optims  # noqa: F401  (registers the schedules)
import numpy as np
import torch
from lavis.common.config import Config
from lavis.common.dist_utils import get_rank, init_distributed_mode, is_main_process
from lavis.common.logger import setup_logger
from lavis.common.registry import registry
from lavis.common.utils import now
from lavis.tasks import setup_task
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import distributed as dist
from yaml import YAMLError

from elip_plugin.errors import ConfigError, nearest
from elip_plugin.patching.checkpoints import load_checkpoint

NAMES = {"task": "task", "runner": "runner", "lr_sched": "lr_scheduler"}
"""Keys of a run section that name something, and what LAVIS' registry calls it."""


def run(
    cfg_path: Path, options: Sequence[str], *, evaluate: bool, checkpoint: Path | None = None
) -> dict[str, Any]:
    """Train or evaluate a model as a LAVIS run config says, with overrides like run.max_epoch=1.

    Without a checkpoint, evaluation is of what the config loads. Returns the scores by test split,
    which only the first process has. Raises a ConfigError before anything is written.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module="lavis|fairscale")
    check_run_config(cfg_path, options)
    cfg = Config(SimpleNamespace(cfg_path=str(cfg_path), options=list(options)))
    cfg.run_cfg.evaluate = evaluate
    alone = not dist.is_initialized()
    _join_processes(cfg.run_cfg)
    try:
        return _run(cfg, evaluate=evaluate, checkpoint=checkpoint)
    finally:
        if alone and dist.is_initialized():  # before the interpreter ends its threads
            dist.destroy_process_group()


def check_run_config(path: Path, options: Sequence[str]) -> None:
    """Check that a config can be read, and that what it names is known to LAVIS' registry.

    LAVIS' own errors are bare assertions.
    """
    bad = [option for option in options if "=" not in option]
    if bad:
        raise ConfigError(f"options {bad} must be KEY=VALUE")
    try:
        given = OmegaConf.from_dotlist(list(options))
        config: Any = OmegaConf.merge(OmegaConf.load(path), given)
    except (YAMLError, OmegaConfBaseException, OSError) as error:
        raise ConfigError(f"config {str(path)!r} cannot be read: {error}") from error
    missing = [name for name in ("model", "datasets", "run") if not config.get(name)]
    if missing:
        raise ConfigError(f"config {path} has no sections {missing}")
    names = [("model.arch", "model", config.model.get("arch"))]
    names += [("datasets", "builder", name) for name in config.datasets]
    names += [(f"run.{k}", kind, config.run[k]) for k, kind in NAMES.items() if k in config.run]
    for what, kind, name in names:
        known = list(registry.mapping[f"{kind}_name_mapping"])
        if name not in known:
            raise ConfigError(f"{what} {name!r} is not known; {nearest(name, known)}")


def _join_processes(run: Any) -> None:
    """Join the other processes that were started, if any were; LAVIS joins GPUs only."""
    if str(run.device).startswith("cuda"):
        if not torch.cuda.is_available():
            raise ConfigError(
                f"run.device is {run.device!r}, but torch sees no GPU: set run.device to cpu "
                "(`run.device=cpu` at the end of the command)"
            )
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
