"""Copies of blocks on which numbers are compared: in float64, on the CPU, without side effects."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.runner import Calling
from elip_plugin.patching.wrappers import is_adapter

BATCH, TOKENS = 2, 7
"""Of the random tokens; unequal, so that the layout shows."""

TOLERANCE = 1e-10
"""Largest difference over the largest value that counts as rounding in float64."""

NARROW = (torch.float32, torch.float16, torch.bfloat16)


class InDouble(TorchFunctionMode):
    """Computes in float64 what a block computes in a narrower type, such as a norm in float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch with float64 in place of narrower types."""
        if func in (Tensor.float, Tensor.half, Tensor.bfloat16):
            func = Tensor.double
        options = {name: _widened(value) for name, value in (kwargs or {}).items()}
        return func(*map(_widened, args), **options)


def _widened(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in NARROW else value


@contextmanager
def without_traces() -> Iterator[None]:
    """Run copies in float64; the caller's random numbers stay as they are."""
    with torch.random.fork_rng(devices=[]), InDouble(), torch.autocast("cpu", enabled=False):
        torch.default_generator.manual_seed(0)
        yield


def copied(module: nn.Module, memo: dict[int, Any] | None = None) -> Any:
    """Copy a module to the CPU in float64, in evaluation mode.

    Args:
        module: The module; it stays as it is.
        memo: Copies that are there already, by the identity of what they are copies of.

    Returns:
        The copy.

    Raises:
        UnsupportedModelError: If it cannot be copied.
    """
    name = type(module).__name__
    try:
        return copy.deepcopy(module, memo).to("cpu", torch.float64).eval()
    except Exception as error:  # of as many kinds as there are modules
        raise UnsupportedModelError(
            f"{name} cannot be copied to the CPU in float64, where it would be checked: {error}"
        ) from error


@torch.no_grad()
def draw_weights(module: nn.Module) -> None:
    """Draw a module's weights so that no part of it does nothing, as scales of zero would."""
    for weight in module.parameters():
        if weight.ndim > 1:
            weight.normal_(std=1.5 * max(weight[0].numel(), 1) ** -0.5)
        else:
            weight.uniform_(0.5, 1.5)


def merge_adapters(module: nn.Module) -> None:
    """Merge the adapters of peft into the weights, so that each layer is one linear map."""
    layers: list[Any] = list(module.modules())
    for layer in layers:
        if is_adapter(layer) and not layer.merged:
            layer.merge()


@dataclass
class Event:
    """A module that a block called.

    Attributes:
        path: Its path in the block.
        module: The module.
        input: The one tensor that it was given; batch first.
        output: The first tensor that it returned; batch first.
    """

    path: str
    module: nn.Module
    input: Tensor
    output: Tensor

    @property
    def does_nothing(self) -> bool:
        """Whether it returned what it was given."""
        return close(self.input, self.output)


def close(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors are equal to rounding."""
    return a.shape == b.shape and difference(a, b) <= TOLERANCE


def difference(a: Tensor, b: Tensor) -> float:
    """Compute the largest difference over the largest value; NaN is an infinite one."""
    found = float((a - b).abs().max() / b.abs().max().clamp_min(1e-300))
    return found if found == found else float("inf")


def run(block: Any, x: Tensor, calling: Calling) -> Tensor:
    """Run a block on tokens [B, T, D], as its tower calls it."""
    out = block(calling.turned(x), *calling.args, **calling.options)
    return calling.turned(out[0] if isinstance(out, tuple) else out)


def few_tokens(calling: Calling, prefix: int) -> tuple[int, Calling]:
    """Return a few tokens' number and how a block is called with them.

    Args:
        calling: How its tower calls it.
        prefix: Prefix tokens P, which have no positions.

    Returns:
        The number, and the calling, with as many rows of its tables of positions.
    """
    if not calling.positions:
        return TOKENS, calling
    tables = {name: calling.options[name] for name in calling.positions}
    # The dimensions before their rows, all 1, are left out.
    first = tree_map(lambda table: table.reshape(table.shape[-2:])[:TOKENS], tables)
    return prefix + TOKENS, replace(calling, options={**calling.options, **first})


def returns_tuple(block: nn.Module, width: int, calling: Calling, tokens: int = TOKENS) -> bool:
    """Tell whether a block returns a tuple, the tokens first; see `record` for the errors."""
    returned: list[Any] = []
    copy = copied(block)
    copy.register_forward_hook(lambda module, args, out: returned.append(out))
    record(copy, random_tokens(width, tokens), calling)
    return isinstance(returned[0], tuple)


def random_tokens(width: int, tokens: int = TOKENS, batch: int = BATCH) -> Tensor:
    """Return random tokens [B, T, D] in float64."""
    return torch.randn(batch, tokens, width, dtype=torch.float64)


def record(block: nn.Module, x: Tensor, calling: Calling) -> tuple[list[Event], Tensor]:
    """Run a block on tokens [B, T, D], and record the modules that it calls.

    Args:
        block: The block.
        x: Tokens.
        calling: How its tower calls it.

    Returns:
        The events, in the order of their ends, and the tokens after the block.

    Raises:
        UnsupportedModelError: If it does not run, with the part that fails.
    """
    events: list[Event] = []
    inside: list[str] = []
    turned = (x.shape[1], x.shape[0])

    def ours(y: Tensor) -> Tensor:
        y = y.detach().clone()
        return y.transpose(0, 1) if calling.sequence_first and y.shape[:2] == turned else y

    def begin(path: str) -> Any:
        return lambda module, args, options: inside.append(path)

    def end(path: str) -> Any:
        def hook(module: nn.Module, args: Any, options: Any, out: Any) -> None:
            inside.pop()
            given = [y for y in (*args, *options.values()) if isinstance(y, Tensor)]
            out = out[0] if isinstance(out, tuple) else out
            same = given and all(y is given[0] for y in given)  # an attention is given it thrice
            if same and isinstance(out, Tensor):
                events.append(Event(path, module, ours(given[0]), ours(out)))

        return hook

    hooks = []
    adapters = [path for path, module in block.named_modules() if is_adapter(module)]
    for path, module in block.named_modules():
        if path and not any(path.startswith(f"{adapter}.") for adapter in adapters):
            hooks.append(module.register_forward_pre_hook(begin(path), with_kwargs=True))
            hooks.append(module.register_forward_hook(end(path), with_kwargs=True))
    try:
        with torch.enable_grad():  # else torch's own layers take a path without their parts
            out = run(block, x, calling).detach()
    except Exception as error:
        part = f"its part {inside[-1]!r}" if inside else "it"
        raise UnsupportedModelError(
            f"a block must run on any number of tokens by itself, but {part} does not run on "
            f"{tuple(x.shape)} ({type(error).__name__}: {error}): windows, a bias by position and "
            "the like depend on the number"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    if out.shape != x.shape:
        raise UnsupportedModelError(
            f"a block must return as many tokens as it is given: of {tuple(x.shape)} it makes "
            f"{tuple(out.shape)}"
        )
    return events, out
