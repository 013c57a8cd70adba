"""The cluster's start files run with a stand-in launcher, and the parsers know their options."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "cluster"
RECORD = '#!/usr/bin/env bash\nprintf "%s\\0" "$@" > "$RECORDED"\n'
SETTINGS = {
    "TRAIN_DATA": "shards/{00000..00099}.tar",
    "TRAIN_SAMPLES": "1000000",
    "SLURM_SUBMIT_DIR": str(ROOT),
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_ID": "7",
}


def launch(name: str, folder: Path, *more: str, **settings: str) -> Any:
    """Run a file with stand-ins for torchrun and srun; return what torchrun's parser reads."""
    from torch.distributed.run import get_args_parser

    stand_ins = {"torchrun": RECORD, "srun": '#!/usr/bin/env bash\nexec "$@"\n'}
    for program, text in stand_ins.items():
        (folder / program).write_text(text)
        (folder / program).chmod(0o755)
    env = {
        **os.environ,
        **SETTINGS,
        **settings,
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "RECORDED": str(folder / "recorded"),
    }
    command = ["bash", str(FOLDER / name), *more]
    subprocess.run(command, check=True, cwd=ROOT, env=env, timeout=60)
    words = (folder / "recorded").read_text().split("\0")[:-1]
    made = get_args_parser().parse_args(words)
    assert made.module
    return made


def sbatch_options(name: str) -> dict[str, str]:
    """Return what a file asks of SLURM."""
    return dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", (FOLDER / name).read_text(), re.M))


def test_every_file_is_in_the_readme() -> None:
    files = {path.name for path in FOLDER.iterdir()} - {"README.md"}
    assert set(re.findall(r"^\| `(.+?)` ", (FOLDER / "README.md").read_text(), re.M)) == files
    assert f"`{FOLDER.name}/`" in (FOLDER.parent / "README.md").read_text()


@pytest.mark.parametrize("name", ["open_clip_8_gpus.sh", "open_clip_8_gpus.slurm"])
def test_open_clip(name: str, tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip", minversion="3")  # has --force-context-length
    from open_clip_train.params import parse_args

    made = launch(name, tmp_path, "--epochs", "5", BATCH_SIZE="640")
    assert made.training_script == "open_clip_train.main"
    options = parse_args(made.training_script_args)
    assert open_clip.get_model_config(options.model) is not None
    assert (options.train_data, options.train_num_samples) == (SETTINGS["TRAIN_DATA"], 1_000_000)
    assert (options.batch_size, options.epochs, options.accum_freq) == (640, 5, 1)
    assert options.grad_checkpointing and options.force_context_length == 32
    assert options.precision == "amp_bf16" and options.logs == "logs"
    processes = int(made.nproc_per_node)
    if name.endswith(".slurm"):
        asked = sbatch_options(name)
        assert made.nnodes == asked["nodes"] and made.rdzv_endpoint.endswith(":29500")
        assert processes == int(asked["gpus-per-node"]) and asked["ntasks-per-node"] == "1"
        processes *= int(asked["nodes"])
    assert processes == 8


def test_open_clip_names_what_is_not_set(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        launch("open_clip_8_gpus.sh", tmp_path, TRAIN_DATA="")
    assert not (tmp_path / "recorded").exists()


@pytest.mark.parametrize("name", ["lavis_4_gpus.sh", "lavis_4_gpus.slurm"])
@pytest.mark.parametrize("settings", [{}, {"CONFIG": "blip", "BATCH_SIZE": "96"}])
def test_lavis(name: str, settings: dict[str, str], tmp_path: Path) -> None:
    omegaconf = pytest.importorskip("omegaconf")
    import typer

    from elip_plugin.cli.main import app

    if "CONFIG" in settings:
        settings = {**settings, "CONFIG": "lavis_configs/projects/blip/pretrain.yaml"}
    made = launch(name, tmp_path, "run.max_epoch=5", **settings)
    assert made.training_script == "elip_plugin" and int(made.nproc_per_node) == 4
    if name.endswith(".slurm"):
        assert (sbatch_options(name)["nodes"], sbatch_options(name)["gpus-per-node"]) == ("1", "4")
    lavis, train, *words = made.training_script_args
    command: Any = typer.main.get_command(app)
    given = command.commands[lavis].commands[train].make_context(train, words).params
    config = omegaconf.OmegaConf.load(ROOT / given["cfg_path"])
    config.merge_with_dotlist(given["more"])
    assert config.run.max_epoch == 5 and config.run.amp is True and config.run.distributed is True
    assert config.model.elip.preset == "half" and config.model.vit_grad_ckpt is True
    assert config.model.queue_size % (4 * config.run.batch_size_train) == 0
    check_by_lavis(ROOT / given["cfg_path"], given["more"])


def check_by_lavis(path: Path, overrides: list[str]) -> None:
    """Let the checks of a real run read the config, where LAVIS is installed."""
    try:
        import lavis  # noqa: F401
    except ImportError:
        return
    from elip_plugin.hosts.lavis.compat.train import check_run_config
    from elip_plugin.hosts.lavis.names import register

    register()
    check_run_config(path, overrides)
