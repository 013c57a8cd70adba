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
from elip_plugin.hosts.anyvit.finder import IMAGES, TowerPath
from elip_plugin.patching.description import Description, Tower
from elip_plugin.patching.install import install

CONFIG = {
    "reducer": "random",
    "stages": [{"block": 1, "lookahead": 1, "keep": 0.5}],
    "eval_mode": "image",
}
"""Prunes without any part of a block."""

WORDS = 8
"""Tokens of a stand-in text."""


def check_consumer(model: nn.Module, tower: Tower, place: TowerPath, side: tuple[int, int]) -> None:
    """Refuse a model that needs all tokens: a head or a backbone that makes maps of them.

    A copy without weights, on the meta device, runs on inputs of zeros. A model that does not run
    so with all tokens is not checked.

    Args:
        model: What is to be pruned; it stays as it is.
        tower: Its described tower.
        place: Where that is.
        side: Rows and columns of pixels of its images.

    Raises:
        UnsupportedModelError: If its forward fails with fewer tokens, makes other shapes of
            anything but the tokens, or does not prune.
    """
    name, lengths = type(model).__name__, list[int]()
    for inputs in _inputs(model, side):
        twin = _without_weights(model)
        try:
            expected = _shapes(_run(twin, inputs))
        except Exception:  # of as many kinds as there are models
            continue
        break
    else:
        return
    described = replace(tower, module=twin.get_submodule(place.tower))
    last = described.block_list[-1]
    pruner = install(Description(twin, described), ElipConfig.from_mapping(CONFIG))
    last.register_forward_pre_hook(lambda _, args: lengths.append(_length(args[0], tower)))
    try:
        found = _shapes(_run(twin, inputs))
    except Exception as error:
        raise UnsupportedModelError(
            f"{name} needs all tokens of its vision tower: with fewer its forward fails "
            f"({type(error).__name__}: {error})"
        ) from error
    after = pruner.plan.tokens[-1]
    if lengths != [after]:
        raise UnsupportedModelError(
            f"{name} does not run the forward of its vision tower, so nothing would be pruned"
        )
    numbers = {pruner.num_tokens - less: after - less for less in (0, tower.prefix)}
    for path, shape in expected.items():
        fewer = found.get(path, ())
        changed = [pair for pair in zip(shape, fewer) if pair[0] != pair[1]]
        tokens = (
            len(shape) == 3 and len(changed) == 1 and numbers.get(changed[0][0]) == changed[0][1]
        )
        if len(shape) != len(fewer) or (changed and not tokens):
            raise UnsupportedModelError(
                f"{name} needs all tokens of its vision tower: its output {path} has the shape "
                f"{shape}, and with fewer tokens {fewer}"
            )


def _inputs(model: Any, side: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """Yield inputs of the kinds that models of transformers and others take."""
    images = torch.zeros(IMAGES, 3, *side, device="meta")
    ids = torch.zeros(IMAGES, WORDS, dtype=torch.long, device="meta")
    yield {"": images}
    yield {"pixel_values": images}
    yield {"pixel_values": images, "input_ids": ids}  # a mask would be read, and has no numbers


def _without_weights(model: nn.Module) -> Any:
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


def _length(x: Tensor, tower: Tower) -> int:
    return x.shape[0 if tower.calling.sequence_first else 1]


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
