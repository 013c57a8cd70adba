"""One function per format that writes a graph, and one that runs what was written.

Equal scores favor the earlier token, in a file as in torch: ONNX' TopK says so of itself, and
OpenVINO does so where it reads torch's graph (not where it reads an ONNX file, which is why such a
file has no other runtime here).
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from elip_plugin.errors import ConfigError, MissingPackageError

EXTRA = "pip install 'elip-plugin[export]'"

OPENVINO_OPTIONS = {"INFERENCE_PRECISION_HINT": "f32"}
"""Where a processor has bfloat16, OpenVINO's default is that, and other tokens are then merged."""

Run = Callable[..., Tensor]
"""Runs a tower: inputs [B, ...] on the CPU -> features [B, E]."""


@dataclass(frozen=True)
class Format:
    """A format of files."""

    suffix: str  # end of the file's name
    packages: tuple[str, ...]  # what must be installed
    # Writes a graph with the names of its inputs; runs a file by a number of threads, or None.
    write: Callable[[ExportedProgram, Path, tuple[str, ...]], None]
    open: Callable[[Path, int | None], Run]

    def versions(self) -> dict[str, str]:
        """Return the versions of the packages, torch's included."""
        return {name: metadata.version(name) for name in ("torch", *self.packages)}


def find_format(name: str) -> Format:
    """Find a format by name, and check that its packages are installed."""
    if name not in FORMATS:
        raise ConfigError(f"format {name!r} is not known; choose from {list(FORMATS)}")
    found = FORMATS[name]
    missing = [package for package in found.packages if importlib.util.find_spec(package) is None]
    if missing:
        raise MissingPackageError(f"{', '.join(missing)} is not installed; run: {EXTRA}")
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what exporters print and warn of about their own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def write_torch(program: ExportedProgram, path: Path, names: tuple[str, ...]) -> None:
    """Write the graph as torch.export does; see `Format.write`."""
    with _quiet():
        torch.export.save(program, path)


def open_torch(path: Path, threads: int | None) -> Run:
    """Run a file of torch.export; reading one can run code. See `Format.open`."""
    with _quiet():
        module = torch.export.load(path).module()
    if threads is not None:
        torch.set_num_threads(threads)

    def run(*inputs: Tensor) -> Tensor:
        with torch.no_grad():
            features: Tensor = module(*inputs)
        return features

    return run


def write_onnx(program: ExportedProgram, path: Path, names: tuple[str, ...]) -> None:
    """Write the graph as ONNX; see `Format.write`."""
    with _quiet():
        graph = torch.onnx.export(
            program,
            dynamo=True,
            input_names=names,
            output_names=["features"],
            custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
            verbose=False,
        )
    assert graph is not None
    graph.save(path)


def _stable_sort(self: Any, stable: Any = None, dim: int = -1, descending: bool = False) -> Any:
    """Translate a stable sort, for which torch's exporter has no function.

    TopK gives equal values in the order of their indices, by ONNX' specification.
    """
    op = importlib.import_module("onnxscript").opset18
    length = op.Gather(op.Shape(self), op.Constant(value_ints=[dim]))
    return op.TopK(self, length, axis=dim, largest=int(descending), sorted=1)


def open_onnx(path: Path, threads: int | None) -> Run:
    """Run a file by ONNX Runtime on the CPU; see `Format.open`."""
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        arrays = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, arrays)[0])

    return run


def write_openvino(program: ExportedProgram, path: Path, names: tuple[str, ...]) -> None:
    """Write the graph for OpenVINO, with weights in float32; see `Format.write`."""
    openvino = importlib.import_module("openvino")
    with _quiet():
        graph = openvino.convert_model(program)
    for given, name in zip(graph.inputs, names, strict=True):
        given.set_names({name})
    graph.outputs[0].set_names({"features"})
    openvino.save_model(graph, path, compress_to_fp16=False)


def open_openvino(path: Path, threads: int | None) -> Run:
    """Run a file by OpenVINO on the CPU, in float32; see `Format.open`."""
    openvino = importlib.import_module("openvino")
    options: dict[str, Any] = dict(OPENVINO_OPTIONS)
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    compiled = openvino.Core().compile_model(path, "CPU", options)

    def run(*inputs: Tensor) -> Tensor:
        return torch.from_numpy(compiled([tensor.numpy() for tensor in inputs])[0].copy())

    return run


FORMATS: Mapping[str, Format] = {
    "onnx": Format(".onnx", ("onnx", "onnxscript", "onnxruntime"), write_onnx, open_onnx),
    "openvino": Format(".xml", ("openvino",), write_openvino, open_openvino),
    "torch": Format(".pt2", (), write_torch, open_torch),
}
