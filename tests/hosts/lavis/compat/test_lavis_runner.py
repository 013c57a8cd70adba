"""LAVIS' runner on a CPU: training, resuming, evaluating, errors before anything is written."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("lavis")

import lavis_runs as runs
from lavis.common import logger
from lavis.runners import runner_base
from lavis.runners.runner_base import RunnerBase
from lavis.tasks import RetrievalTask, base_task
from lavis.tasks.base_task import BaseTask
from lavis_family import (
    PLANNED,
)
from lavis_recorders import seen

from elip_plugin import find_handle
from elip_plugin.cli.main import app
from elip_plugin.errors import ConfigError, DataError, PlanError
from elip_plugin.hosts.lavis.compat import train
from elip_plugin.hosts.lavis.compat.runner import ElipRunner, _suited_to
from elip_plugin.patching.install import find_pruner

ARCHS = ["elip_albef_pretrain", "elip_blip_pretrain", "elip_clip"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """LAVIS sleeps between epochs, installs a log handler, and runs once in a process."""
    monkeypatch.setattr("lavis.datasets.datasets.dataloader_utils.time.sleep", lambda _: None)
    paths = train.registry.mapping["paths"]
    monkeypatch.setattr(train.registry, "register_path", paths.__setitem__)
    handlers = logging.root.handlers[:]
    yield
    logging.root.handlers[:] = handlers


@pytest.fixture
def config(tmp_path: Path, data: Path) -> Callable[..., Path]:
    def write(arch: str = "elip_albef_pretrain", model: Any = None, **run: Any) -> Path:
        section = runs.model_section(arch, data, **(model or {}))
        return runs.write_config(tmp_path / "run.yaml", section, data, **run)

    return write


def checkpoints(folder: Path) -> dict[str, Any]:
    return {p.name: torch.load(p) for p in sorted((folder / "output").rglob("*.pth"))}


@pytest.mark.parametrize("arch", ARCHS)
def test_trains_as_planned_and_prints_held_out_retrieval(
    arch: str, config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    inner = ElipRunner.train_epoch

    def recorded(self: Any, epoch: int) -> Any:
        with seen(self._model) as found:
            stats = inner(self, epoch)
        lengths.extend(found)
        return stats

    monkeypatch.setattr(ElipRunner, "train_epoch", recorded)
    result = CliRunner().invoke(app, ["lavis", "train", "--cfg-path", str(config(arch))])
    assert result.exit_code == 0, result.exception
    assert lengths == PLANNED * 4
    assert re.search(r"test: txt_r1 [\d.]+, .*img_r1 [\d.]+", result.output)
    logs = [json.loads(line) for line in epoch_lines(tmp_path)]
    assert len(logs) == 2 and all(float(log["train_loss"]) > 0 for log in logs)
    assert list(checkpoints(tmp_path)) == ["checkpoint_0.pth", "checkpoint_1.pth"]


def epoch_lines(folder: Path) -> list[str]:
    text = next((folder / "output").rglob("log.txt")).read_text()
    return [line for line in text.splitlines() if line.startswith('{"train_')]


@pytest.mark.parametrize("arch", ["elip_albef_pretrain", "elip_blip_pretrain"])
def test_a_checkpoint_resumes_with_its_momentum_encoder(
    arch: str, config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config(arch)
    train.run(path, ["run.test_splits=[]"], evaluate=False)
    saved = checkpoints(tmp_path)["checkpoint_0.pth"]
    assert any("visual_encoder_m." in key for key in saved["model"])
    epochs, inner = [], ElipRunner.train_epoch

    def compared(self: Any, epoch: int) -> Any:
        epochs.append(epoch)
        assert_same(self._model.state_dict(), saved["model"])
        assert_same(self.optimizer.state_dict()["state"], saved["optimizer"]["state"])
        return inner(self, epoch)

    monkeypatch.setattr(ElipRunner, "train_epoch", compared)
    first = next((tmp_path / "output").rglob("checkpoint_0.pth"))
    train.run(path, ["run.test_splits=[]", f"run.resume_ckpt_path={first}"], evaluate=False)
    assert epochs == [1]
    with pytest.raises(ConfigError, match=r"2 epochs and max_epoch is 2.*raise run.max_epoch"):
        last = first.with_name("checkpoint_1.pth")
        train.run(path, [f"run.resume_ckpt_path={last}"], evaluate=False)


def test_a_run_resumes_from_weights_alone_that_fit(
    config: Callable[..., Path], tmp_path: Path
) -> None:
    file = tmp_path / "other.pth"
    options = [f"run.resume_ckpt_path={file}"]
    with pytest.raises(DataError, match=r"other\.pth' is no file"):
        train.run(config("elip_clip"), options, evaluate=False)
    torch.save({"model": {}}, file)
    with pytest.raises(ConfigError, match=r"other\.pth does not fit this model"):
        train.run(config("elip_clip"), options, evaluate=False)
    torch.save({"model": {}, "config": Unpickled()}, file)
    with pytest.raises(DataError, match="ELIP_TRUST_CHECKPOINT"):
        train.run(config("elip_clip"), options, evaluate=False)


class Unpickled:
    def __reduce__(self) -> Any:
        return pytest.fail, ("a file was unpickled",)


@pytest.mark.parametrize("runner", ["elip_runner", "runner_base", "runner_iter"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_schedules_follow_the_runner(
    runner: str,
    accumulate: int,
    config: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without total_steps, with LAVIS' own runners, with accumulation, and after a resume."""
    levels: list[float] = []
    inner = BaseTask.train_step

    def recorded(self: Any, model: Any, samples: Any) -> Any:
        levels.append(find_pruner(model).progress.level)
        return inner(self, model=model, samples=samples)

    monkeypatch.setattr(BaseTask, "train_step", recorded)
    options = ["model.elip.warmup=0.5", "run.test_splits=[]", f"run.runner={runner}"]
    options += [f"run.accum_grad_iters={accumulate}"]
    iterations = ["run.max_iters=4", "run.iters_per_inner_epoch=2"]
    options += iterations if runner == "runner_iter" else []
    # Their own faults on CPUs, and in a second run, are not this test's matter.
    monkeypatch.setattr(RunnerBase, "model", property(lambda runner: runner._model))
    monkeypatch.setattr("lavis.runners.runner_iter.dist", SimpleNamespace(barrier=lambda: None))
    with _suited_to(SimpleNamespace(cuda_enabled=False, use_distributed=False)):  # type: ignore[arg-type]
        train.run(config(), options, evaluate=False)
    assert levels == ([0, 0.5, 1, 1] if accumulate == 1 else [0, 0, 1, 1])
    if runner == "elip_runner":
        levels.clear()
        first = next((tmp_path / "output").rglob("checkpoint_0.pth"))
        train.run(config(), [*options, f"run.resume_ckpt_path={first}"], evaluate=False)
        assert levels == [1, 1]


def assert_same(left: Any, right: Any) -> None:
    assert left.keys() == right.keys()
    for key in left:
        if isinstance(left[key], dict):
            assert_same(left[key], right[key])
        else:
            assert torch.equal(left[key], right[key]), key


def test_validation_keeps_the_best(
    config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is then tested, as LAVIS does."""
    scores = iter([10.0, 30.0, 20.0, 30.0])
    monkeypatch.setattr(
        RetrievalTask, "_report_metrics", staticmethod(lambda *_: {"agg_metrics": next(scores)})
    )
    train.run(config(valid_splits=["val"], max_epoch=3), [], evaluate=False)
    saved = checkpoints(tmp_path)
    assert {name: state["epoch"] for name, state in saved.items()} == {"checkpoint_best.pth": 1}
    assert any("visual_encoder_m." in key for key in saved["checkpoint_best.pth"]["model"])


def test_an_evaluation_leaves_samples_on_the_cpu(
    config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the loop that LAVIS' tasks share; retrieval has its own."""

    def devices(self: Any, model: Any, samples: Any) -> list[str]:
        return [samples["image"].device.type] * len(samples["image"])

    monkeypatch.setattr(RetrievalTask, "evaluation", BaseTask.evaluation)
    monkeypatch.setattr(RetrievalTask, "valid_step", devices)
    assert train.run(config(), [], evaluate=True) == {"test": ["cpu"] * 6}


def test_evaluate_loads_a_checkpoint_and_equals_the_end_of_training(
    config: Callable[..., Path], tmp_path: Path
) -> None:
    path = config()
    trained = train.run(path, [], evaluate=False)
    last = next((tmp_path / "output").rglob("checkpoint_1.pth"))
    before = sorted(p.name for p in (tmp_path / "output").rglob("*.pth"))
    assert train.run(path, [], evaluate=True, checkpoint=last) == trained
    assert sorted(p.name for p in (tmp_path / "output").rglob("*.pth")) == before
    with pytest.raises(DataError, match="no file"):
        train.run(path, [], evaluate=True, checkpoint=tmp_path / "none.pth")
    torch.save({"model": {}}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=r"other\.pth does not fit this model section"):
        train.run(path, [], evaluate=True, checkpoint=tmp_path / "other.pth")


USERS_TRAIN_PY = """
import argparse, random
import numpy as np
import torch
import lavis.tasks as tasks
from lavis.common.config import Config
from lavis.common.dist_utils import get_rank, init_distributed_mode
from lavis.common.logger import setup_logger
from lavis.common.optims import LinearWarmupCosineLRScheduler
from lavis.common.registry import registry
from lavis.common.utils import now
from lavis.datasets.builders import *
from lavis.models import *
from lavis.processors import *
from lavis.runners import *
from lavis.tasks import *

parser = argparse.ArgumentParser()
parser.add_argument("--cfg-path", required=True)
parser.add_argument("--options", nargs="+")
cfg = Config(parser.parse_args())
init_distributed_mode(cfg.run_cfg)
torch.manual_seed(cfg.run_cfg.seed + get_rank())
setup_logger()
cfg.pretty_print()
task = tasks.setup_task(cfg)
datasets = task.build_datasets(cfg)
model = task.build_model(cfg)
runner = registry.get_runner_class(cfg.run_cfg.get("runner", "runner_base"))
runner(cfg=cfg, job_id=now(), task=task, model=model, datasets=datasets).train()
"""


@pytest.mark.slow
def test_a_users_own_train_py_knows_our_names_by_config_alone(
    config: Callable[..., Path], tmp_path: Path
) -> None:
    """A stand-in with the steps that LAVIS documents; the plugin is never imported."""
    script = tmp_path / "train.py"
    script.write_text(USERS_TRAIN_PY)
    command = [
        sys.executable,
        str(script),
        "--cfg-path",
        str(config()),
        "--options",
        "run.max_epoch=1",
    ]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "ELIP prunes the vision tower by the caption: 17 tokens -> 16" in result.stderr
    assert "'txt_r1'" in result.stderr
    assert list(checkpoints(tmp_path)) == ["checkpoint_0.pth"]


def test_each_process_evaluates_retrieval_whole() -> None:
    """LAVIS would share the images, and compare those of one process with all texts."""
    runner: Any = object.__new__(ElipRunner)
    for task, said, shared in (
        (RetrievalTask, {}, False),
        (RetrievalTask, {"use_dist_eval_sampler": True}, True),
        (BaseTask, {}, True),
    ):
        runner.task, runner.config = object.__new__(task), SimpleNamespace(run_cfg=said)
        assert runner.use_dist_eval_sampler is shared


def test_several_processes_need_gpus(
    config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "SLURM_NTASKS"):
        monkeypatch.setenv(name, "2")
        with pytest.raises(ConfigError, match="several processes on GPUs only: start one process"):
            train.run(config(), [], evaluate=False)
        monkeypatch.delenv(name)
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.arch=elip_albef_pretrian"], "did you mean .*elip_albef_pretrain"),
        (["model.elip.preset=slow"], "preset 'slow' is not known"),
        (["model.elip.keep=0.5"], "key 'keep' is not known"),
        (
            ["model.tokeniser=x"],
            "'tokeniser' is not known for this arch; did you mean .'tokenizer'",
        ),
        (["model.tokenizer=nowhere.txt"], "tokenizer 'nowhere.txt' does not exist"),
        (["model.elip.stages=[{block: 14, lookahead: 1, keep: 0.5}]"], "blocks 0 to 11"),
        (["run.task=retreival"], "did you mean .*retrieval"),
        (["run.lr_sched=cosine"], "run.lr_sched 'cosine' is not known"),
        (["run.device=cuda"], "torch sees no GPU"),
        (["run.runner=runner_bose"], "did you mean .*runner_base"),
        (["datasets.elip_pears={}"], "did you mean .*elip_pairs"),
        (["run.max_epoch"], "must be KEY=VALUE"),
        (["run=null"], "has no sections .'run'"),
    ],
)
def test_faults_are_named_before_anything_is_written(
    options: list[str], message: str, config: Callable[..., Path], tmp_path: Path
) -> None:
    if options[0] == "run.device=cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    path = config()
    with pytest.raises((ConfigError, PlanError, DataError), match=message):
        train.run(path, options, evaluate=False)
    assert not (tmp_path / "output").exists()


def test_a_missing_image_is_named_before_training(
    config: Callable[..., Path], tmp_path: Path, data: Path
) -> None:
    rows = json.loads((data / "train.json").read_text())
    (tmp_path / "train.json").write_text(json.dumps([{**rows[0], "image": "bad.png"}]))
    option = f"datasets.elip_pairs.build_info.annotations.train.storage={tmp_path / 'train.json'}"
    with pytest.raises(DataError, match=r"bad\.png"):
        train.run(config(), [option], evaluate=False)
    assert not (tmp_path / "output").exists()


def test_a_fault_in_mid_training_loses_no_checkpoint(
    config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = ElipRunner.train_epoch

    def failing(self: Any, epoch: int) -> Any:
        if epoch == 1:
            raise DataError("x.png cannot be decoded")
        return inner(self, epoch)

    monkeypatch.setattr(ElipRunner, "train_epoch", failing)
    result = CliRunner().invoke(app, ["lavis", "train", "--cfg-path", str(config())])
    assert isinstance(result.exception, DataError)
    assert list(checkpoints(tmp_path)) == ["checkpoint_0.pth"]


def test_lavis_is_as_before_after_a_run(config: Callable[..., Path]) -> None:
    watched = (runner_base, base_task, logger.SmoothedValue)
    before = [dict(vars(owner)) for owner in watched]
    train.run(config(), ["run.max_epoch=1"], evaluate=False)
    assert [dict(vars(owner)) for owner in watched] == before


def test_disabled_training_equals_the_stock_runner_model(
    config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same run with pruning switched off gives the losses of LAVIS' own arch."""
    losses: dict[str, list[float]] = {"stock": [], "elip": []}
    stack = ExitStack()
    for key in losses:

        def build(self: Any, cfg: Any, key: str = key) -> Any:
            model_class = train.registry.get_model_class(cfg.model_cfg.arch)
            model = model_class.from_config(cfg.model_cfg)
            if key == "stock":
                find_handle(model).remove()
            else:
                stack.enter_context(find_handle(model).disabled())
            model.register_forward_hook(lambda m, a, out: losses[key].append(float(out["loss"])))
            return model

        monkeypatch.setattr("lavis.tasks.base_task.BaseTask.build_model", build)
        with stack:
            train.run(config(), ["run.test_splits=[]"], evaluate=False)
    assert losses["stock"] == losses["elip"]
    assert len(losses["elip"]) == 4
