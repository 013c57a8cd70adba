"""What a whole model makes of fewer tokens: forwards without weights, unpruned and pruned."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from elip_plugin.config import ElipConfig
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.hosts.anyvit.finder import IMAGES
from elip_plugin.patching.description import Description, Tower
from elip_plugin.patching.install import install

DROPS: Mapping[str, Any] = {
    "reducer": "random",
    "stages": [{"block": 1, "lookahead": 1, "keep": 0.5}],
    "eval_mode": "image",
}
"""Leaves out tokens; needs no part of a block."""

MERGES: Mapping[str, Any] = {"preset": "half", "eval_mode": "image"}
"""Gives all patches a token back after the last block."""

WORDS = 8
"""Tokens of a stand-in text."""


def why_all_tokens(model: nn.Module, tower: Tower, path: str, side: tuple[int, int]) -> str:
    """Say why tokens must not be dropped: a head or a backbone makes maps of them; "" if they may.

    A copy without weights, on the meta device, runs on inputs of zeros: of the tower alone, if the
    whole model does not run so with all tokens.

    Args:
        model: What is to be pruned; it stays as it is.
        tower: Its described tower.
        path: Its path in the model.
        side: Rows and columns of pixels of its images.

    Returns:
        A sentence.

    Raises:
        UnsupportedModelError: If it does not work with merged tokens either, or does not prune.
    """
    for whole, place in ((model, path), (tower.module, "")):
        for inputs in _inputs(side):
            try:
                expected = _shapes(_run(without_weights(whole), inputs))
            except Exception:  # of as many kinds as there are models
                continue
            fault = _fault_with(MERGES, whole, tower, place, inputs, expected)
            if fault:
                raise UnsupportedModelError(fault)
            return _fault_with(DROPS, whole, tower, place, inputs, expected)
    return ""


def _fault_with(
    config: Mapping[str, Any],
    model: nn.Module,
    tower: Tower,
    path: str,
    inputs: Mapping[str, Any],
    expected: Mapping[str, tuple[int, ...]],
) -> str:
    """Say what is wrong with a pruned model's outputs; "" if nothing is."""
    name, lengths, twin = type(model).__name__, list[int](), without_weights(model)
    described = replace(tower, module=twin.get_submodule(path))
    last = described.block_list[-1]
    pruner = install(Description(twin, described), ElipConfig.from_mapping(config))
    last.register_forward_pre_hook(lambda _, args: lengths.append(_length(args[0])))
    needs = f"{name} needs all tokens of its vision tower"
    try:
        found = _shapes(_run(twin, inputs))
    except Exception as error:  # of as many kinds as there are heads
        return f"{needs}: with fewer its forward fails ({type(error).__name__}: {error})"
    after = pruner.plan.tokens[-1]
    if lengths != [after]:
        return f"{name} does not run the forward of its vision tower, so nothing would be pruned"
    numbers = {pruner.num_tokens - less: after - less for less in (0, tower.prefix)}
    for output, shape in expected.items():
        fewer = found.get(output, ())
        changed = [pair for pair in zip(shape, fewer) if pair[0] != pair[1]]
        tokens = (
            len(shape) == 3 and len(changed) == 1 and numbers.get(changed[0][0]) == changed[0][1]
        )
        if len(shape) != len(fewer) or (changed and not tokens):
            return (
                f"{needs}: its output {output} has the shape {shape}, and with fewer tokens {fewer}"
            )
    return ""


def _inputs(side: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """Yield inputs of the kinds that models of transformers and others take."""
    images = torch.zeros(IMAGES, 3, *side, device="meta")
    ids = torch.zeros(IMAGES, WORDS, dtype=torch.long, device="meta")
    yield {"": images}
    yield {"pixel_values": images}
    yield {"pixel_values": images, "input_ids": ids}  # a mask would be read, and has no numbers


def without_weights(model: nn.Module) -> Any:
    """Copy a model to the meta device, whose tensors have shapes and no numbers."""
    memo: dict[int, Any] = {}
    for weight in model.parameters():
        memo[id(weight)] = nn.Parameter(weight.data.to("meta"), requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.data.to("meta")
    return copy.deepcopy(model, memo).eval()


def _run(model: Any, inputs: Mapping[str, Any]) -> Any:
    with torch.no_grad(), torch.device("meta"):
        return model(inputs[""]) if "" in inputs else model(**inputs)


def _length(x: Tensor) -> int:
    """Return the number of tokens; modes of a block get [B, T, D] where it takes [T, B, D]."""
    return x.shape[1] if x.shape[0] == IMAGES else x.shape[0]


def _shapes(output: Any, path: str = "") -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors in an output, by where they are."""
    if isinstance(output, Tensor):
        return {path or "tensor": tuple(output.shape)}
    parts: Any = output.items() if isinstance(output, Mapping) else ()
    if isinstance(output, (list, tuple)):
        parts = enumerate(output)
    found: dict[str, tuple[int, ...]] = {}
    for name, part in parts:
        found |= _shapes(part, f"{path}.{name}".strip("."))
    return found
