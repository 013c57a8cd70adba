"""The board at real size: OpenCLIP's own training command, a subprocess per training."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip_train.params import parse_args

from benchmarks.board import grid
from benchmarks.board.cost import Tower, count
from benchmarks.board.variants import VARIANTS
from benchmarks.results_log import KEY

DEFAULT = "unpruned; pool, long end; random 0.5, end"
"""Variants of the reduced grid."""

LOG = "large.jsonl"
CONFIGS = "configs"
"""Folder of the variants' model configs, inside the folder of the log."""

OWN_FLAGS = (
    "model", "dataset-type", "train-data", "train-num-samples", "val-data", "imagenet-val",
    "epochs", "batch-size", "warmup", "precision", "device", "seed", "logs", "name", "resume",
    "save-frequency", "save-most-recent",
)  # fmt: skip
UNCOUNTED = ("force-image-size", "force-context-length", "force-patch-dropout", "lock-")
"""Beginnings of flags that would change the operations of a step."""


@dataclass(frozen=True)
class LargeRecipe:
    """A training of OpenCLIP's command, the same for all variants.

    Attributes:
        model: Name of an OpenCLIP model whose towers are OpenCLIP's own ViT and text transformer.
        config: Its model config.
        train_data: Shards in webdataset's notation.
        train_num_samples: Pairs that an unpruned training sees in an epoch.
        val_data: Shards of the retrieval test; "" for none.
        imagenet_val: Folder of the zero-shot test; "" for none.
        epochs: Epochs, whatever the budget.
        batch_size: Pairs per process and batch.
        warmup: Share of the training over which the learning rate rises.
        precision: OpenCLIP's name of it.
        device: "cuda", or "cpu".
        processes: Processes on this machine; above 1 they are started by torchrun.
        flags: More flags of OpenCLIP's.
    """

    model: str
    config: Mapping[str, Any]
    train_data: str
    train_num_samples: int
    val_data: str
    imagenet_val: str
    epochs: int
    batch_size: int
    warmup: float
    precision: str
    device: str
    processes: int
    flags: Sequence[str]


def check(names: Sequence[str]) -> list[str]:
    """Return names of variants that OpenCLIP's command can train, the reference among them.

    Args:
        names: Keys of `VARIANTS`.

    Returns:
        The variants in the order of the table.

    Raises:
        ValueError: If a name is not known, or is more than an ELIP config.
    """
    fit = [name for name, variant in VARIANTS.items() if variant.is_config]
    chosen = grid.check(names)
    unfit = [name for name in chosen if name not in fit]
    if unfit:
        raise ValueError(
            f"variants {unfit} have a control, smaller pictures, several configs or a rate of "
            f"their own, which OpenCLIP's own command cannot train; choose from {fit}"
        )
    return chosen


def base_config(model: str) -> dict[str, Any]:
    """Look up the config of an unpruned model.

    Args:
        model: An OpenCLIP model.

    Returns:
        Its config.

    Raises:
        ValueError: If there is no such model, if it prunes already, or cannot be counted.
    """
    config: dict[str, Any] | None = open_clip.get_model_config(model)
    if config is None:
        raise ValueError(f"model {model!r} is not known to OpenCLIP; see open_clip.list_models()")
    if "elip" in config:
        raise ValueError(f"model {model!r} is pruned by itself; name its base model")
    towers(config)
    return config


def towers(config: Mapping[str, Any]) -> tuple[Tower, Tower]:
    """Read the sizes of both towers from a model config.

    Args:
        config: A model config of OpenCLIP's.

    Returns:
        The vision tower and the text tower.

    Raises:
        ValueError: If one of them is not OpenCLIP's own, so that its operations are not known.
    """
    vision, text = config.get("vision_cfg", {}), config.get("text_cfg", {})
    foreign = [
        key
        for key, given in (
            ("timm_model_name", vision), ("patch_dropout", vision), ("hf_model_name", text),
            ("multimodal_cfg", config),
        )
        if given.get(key)
    ]  # fmt: skip
    if foreign or not isinstance(vision.get("layers", 12), int):
        raise ValueError(
            f"operations are counted for OpenCLIP's own ViT and text transformer alone, without "
            f"patch dropout, but the model config has {foreign or 'a ResNet'}; take another model, "
            "such as ViT-B-16"
        )
    v, t = open_clip.CLIPVisionCfg(**vision), open_clip.CLIPTextCfg(**text)
    tokens = (v.image_size // v.patch_size) ** 2 + 1
    return (
        Tower(tokens, v.width, v.layers, v.mlp_ratio),
        Tower(t.context_length, t.width, t.layers, t.mlp_ratio),
    )


def check_flags(flags: Sequence[str]) -> None:
    """Check flags that are handed on to OpenCLIP, by its own parser, which exits on a fault.

    Args:
        flags: The flags.

    Raises:
        ValueError: If one is set by this command, or changes what is counted.
    """
    names = [flag[2:].partition("=")[0] for flag in flags if flag.startswith("--")]
    taken = [
        f"--{name}"
        for name in names
        # the parser takes a flag's beginning for the flag
        if any(own.startswith(name) for own in OWN_FLAGS)
        or any(name.startswith(part) or part.startswith(name) for part in UNCOUNTED)
    ]
    if taken:
        raise ValueError(
            f"flags {taken} cannot be handed on: this command sets them, or they change the "
            "counted operations; use its own options, or a model config of your own "
            "(ELIP_MODEL_CONFIGS)"
        )
    if not parse_args(list(flags)).val_frequency:
        raise ValueError("with --val-frequency 0 there would be no results; leave it out")


def _name(training: Mapping[str, Any]) -> str:
    """Name a training's folder, with a checksum of all that distinguishes it."""
    key = json.dumps([training[name] for name in KEY], sort_keys=True).encode()
    text = f"{training['variant']} {training['budget']} seed {training['seed']}"
    return f"{_plain(text)}-{hashlib.sha256(key).hexdigest()[:8]}"


def _model(training: Mapping[str, Any]) -> str:
    """Name the model config of a training's variant."""
    return _plain(f"{training['recipe']['model']} {training['variant']}")


def _plain(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text)


def _samples(training: Mapping[str, Any]) -> int:
    """Count the pairs of an epoch, of which cheaper steps see more in as many operations."""
    unpruned: int = training["recipe"]["train_num_samples"]
    return unpruned if training["budget"] == "steps" else round(unpruned / _step(training))


def _step(training: Mapping[str, Any]) -> float:
    return count(VARIANTS[training["variant"]], *towers(training["recipe"]["config"]))


def command(training: Mapping[str, Any], out: Path) -> list[str]:
    """Build the command of a training.

    Args:
        training: From `benchmarks.board.grid.wanted`, of a `LargeRecipe`.
        out: Folder of the log; each training has a folder there.

    Returns:
        The command, which starts a training or goes on with it.
    """
    recipe = LargeRecipe(**training["recipe"])
    together = recipe.batch_size * recipe.processes * parse_args(list(recipe.flags)).accum_freq
    steps = recipe.epochs * math.ceil(_samples(training) / together)
    values = {
        "model": _model(training), "dataset-type": "webdataset",
        "train-data": recipe.train_data, "train-num-samples": _samples(training),
        "val-data": recipe.val_data, "imagenet-val": recipe.imagenet_val,
        "epochs": recipe.epochs, "batch-size": recipe.batch_size,
        "warmup": round(recipe.warmup * steps), "precision": recipe.precision,
        "device": recipe.device, "seed": training["seed"], "logs": out, "name": _name(training),
        "resume": "latest", "save-frequency": 0,
    }  # fmt: skip
    flags = [part for key, value in values.items() if value != "" for part in (f"--{key}", value)]
    module = ["open_clip_train.main"]
    if recipe.processes > 1:
        launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node"]
        # "--" ends torchrun's own options: it would take --logs for an abbreviation of one.
        module = [*launcher, str(recipe.processes), "-m", "--", *module]
    made = [sys.executable, "-m", *module, *flags, "--save-most-recent", *recipe.flags]
    return [str(part) for part in made]


def write_config(training: Mapping[str, Any], out: Path) -> Path:
    """Write the model config of a training's variant.

    Args:
        training: From `benchmarks.board.grid.wanted`, of a `LargeRecipe`.
        out: Folder of the log.

    Returns:
        The folder that `ELIP_MODEL_CONFIGS` has to name.
    """
    elip = training["definition"]["elip"]
    config = {**training["recipe"]["config"], **({} if elip is None else {"elip": elip})}
    (out / CONFIGS).mkdir(parents=True, exist_ok=True)
    (out / CONFIGS / f"{_model(training)}.json").write_text(json.dumps(config, indent=1) + "\n")
    return out / CONFIGS


def run(training: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Run a training to its end, from its latest checkpoint if it has one.

    Args:
        training: From `benchmarks.board.grid.wanted`, of a `LargeRecipe`.
        out: Folder of the log.

    Returns:
        The training with its costs and, as `results`, OpenCLIP's own last evaluation. Its
        seconds are None if it was interrupted in between.

    Raises:
        RuntimeError: If the command failed, or ended without its last checkpoint or evaluation.
    """
    folder, whole = out / _name(training), not (out / _name(training)).exists()
    environment = {**os.environ, "ELIP_MODEL_CONFIGS": str(write_config(training, out))}
    start = time.perf_counter()
    code = subprocess.run(command(training, out), env=environment, check=False).returncode
    seconds = time.perf_counter() - start
    last = folder / "checkpoints" / f"epoch_{training['recipe']['epochs']}.pt"
    results = folder / "checkpoints" / "results.jsonl"
    if code or not last.exists() or not results.exists():  # the command ends some faults with 0
        raise RuntimeError(
            f"the training {_name(training)} ended with {code} before its last checkpoint and "
            f"evaluation; see {folder / 'out.log'}. The same command goes on from its last epoch"
        )
    share = _samples(training) / training["recipe"]["train_num_samples"]
    return {
        **training,
        "train_num_samples": _samples(training),
        "operations": round(share * _step(training), 4),
        "seconds": round(seconds, 1) if whole else None,
        "torch": torch.__version__.partition("+")[0],
        "results": json.loads(results.read_text().splitlines()[-1]),
    }


def cells(row: Mapping[str, Any]) -> dict[str, str]:
    """Write a result for the table.

    Args:
        row: From `run`.

    Returns:
        What it is, its operations, and each recall and accuracy that OpenCLIP reported, in %.
    """
    scores = {
        name.replace("_", " "): f"{100 * value:.1f}"
        for name, value in row["results"].items()
        if name.endswith(("R@1", "R@5", "top1"))
    }
    named = {name: str(row[name]) for name in ("variant", "budget", "seed")}
    return {**named, "operations": f"{row['operations']:.2f}", **scores}
