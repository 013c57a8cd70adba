"""Exporting a model: a folder that is there only if what it holds gives what the model gives."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elip_plugin.errors import ConfigError, UnsupportedModelError
from elip_plugin.export.formats import OPENVINO_OPTIONS, Format, find_format
from elip_plugin.export.manifest import hash_weights, read_manifest, write_manifest
from elip_plugin.export.parity import BATCHES, compare
from elip_plugin.export.tower import ImageTower, TextTower, capture, example_texts, why_not
from elip_plugin.files import make_folder
from elip_plugin.hosts.base import HostModel
from elip_plugin.hosts.building import seeded
from elip_plugin.label import label_of
from elip_plugin.patching.install import find_pruner

Say = Callable[[str], None]


def export(
    host_model: HostModel,
    out: str | Path,
    *,
    format: str = "onnx",
    text: bool = False,
    pictures: Iterable[Any] = (),
    progress: Say = lambda text: None,
) -> dict[str, Any]:
    """Export the image tower of a model, and check the file against the model.

    Args:
        host_model: What `elip_plugin.create` makes, with a plan that prunes by the image.
        out: A folder that is not there yet.
        format: "onnx", "openvino" or "torch".
        text: Whether the text tower is exported as well.
        pictures: Pillow images to check the file with; by default random ones.
        progress: Is told what is being done.

    Returns:
        What `manifest.json` says.

    Raises:
        UnsupportedModelError: If the model cannot be exported, with the reason.
        MissingPackageError: If a package of the format is missing.
        ParityError: If the file does not give what the model gives; nothing is left then.
        ConfigError: If there is something at `out`, or the format is not known.

    Example:
        >>> model = elip_plugin.create("elip-embed-ViT-B-32", checkpoint="laion2b_s34b_b79k")
        >>> elip_plugin.export.export(model, "embed-b32")["counted_forward"]
        0.54
    """
    out, written = Path(out), find_format(format)
    reason = why_not(host_model)
    if reason:
        raise UnsupportedModelError(f"{host_model.name} cannot be exported: {reason}")
    if out.exists():
        raise ConfigError(f"--out {str(out)!r} is there already: name another, or delete it")
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    make_folder(part)
    training = host_model.model.training
    try:
        host_model.model.eval()
        values = _write_towers(host_model, part, format, written, text, pictures, progress)
        host_model.save_preprocessing(part)
        write_manifest(part, values)
        part.rename(out)
    finally:
        host_model.model.train(training)
        shutil.rmtree(part, ignore_errors=True)
    return read_manifest(out)


def _write_towers(
    host_model: HostModel,
    folder: Path,
    format: str,
    written: Format,
    text: bool,
    pictures: Iterable[Any],
    progress: Say,
) -> dict[str, Any]:
    count = sum(BATCHES)
    with seeded():
        images, _ = host_model.example_batch(count)
    shown = [host_model.preprocess(picture) for picture in pictures]
    checked = torch.stack(shown) if shown else images
    towers: dict[str, tuple[Any, tuple[str, ...], tuple[Tensor, ...]]] = {
        "image": (ImageTower(host_model), ("images",), (checked,))
    }
    if text:
        with seeded():
            names, tokens = example_texts(host_model, count)
        towers["text"] = TextTower(host_model, names), names or ("tokens",), tokens
    about = {}
    for name, (module, inputs, example) in towers.items():
        file = name + written.suffix
        progress(f"{name} tower: exporting to {file}")
        # A dynamic batch needs an example of two.
        pair = tuple(tensor[:1].repeat(2, *[1] * (tensor.ndim - 1)) for tensor in example)
        written.write(capture(module.eval(), pair), folder / file, inputs)
        progress(f"{name} tower: comparing with the model, batches of {list(BATCHES)}")
        with torch.no_grad():
            parity = compare(module, written.open(folder / file, None), example)
        shapes = {
            key: {"shape": list(given.shape[1:]), "dtype": str(given.dtype).removeprefix("torch.")}
            for key, given in zip(inputs, example, strict=True)
        }
        about[name] = {"file": file, "inputs": shapes, "parity": asdict(parity)}
    # The package itself, which has the version and else only what its modules have.
    own = import_module("elip_plugin").__version__
    return {
        **_describe(host_model, images),
        "format": format,
        "versions": {"elip-plugin": own, **written.versions()},
        "runtime_options": OPENVINO_OPTIONS if format == "openvino" else {},
        "towers": about,
    }


def _describe(host_model: HostModel, images: Tensor) -> dict[str, Any]:
    """Describe the model, its weights and its plan."""
    pruner = find_pruner(host_model.model)
    return {
        "label": label_of(host_model),
        "model": host_model.name,
        "weights": {
            "from": host_model.weights,
            "sha256": hash_weights(host_model.model.state_dict()),
        },
        "image_size": list(images.shape[2:]),
        "mean": list(host_model.mean),
        "std": list(host_model.std),
        "elip": pruner.config.to_mapping(),
        "tokens": list(pruner.plan.tokens),
        "counted_forward": round(pruner.plan.forward_cost(pruner.shape.width), 4),
    }
