"""A forward of a copy whose blocks are stand-ins: what the tower does around its blocks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from elip_plugin.errors import UnsupportedModelError
from elip_plugin.hosts.anyvit.copies import close
from elip_plugin.hosts.anyvit.finder import IMAGES, BlockProxy, Trial
from elip_plugin.patching.runner import Calling


class FakeBlock(BlockProxy):
    """Adds numbers to the tokens, in the place of a block.

    Args:
        block: The block.
        number: Which block it is.
        calling: How the block is called.
        made: Where to note the tokens that it returns, and their version.
        tables: Where the first one notes what it is given for positions.

    Attributes:
        shift: By how much it changes the first token more than the others.
    """

    def __init__(
        self,
        block: Any,
        number: int,
        calling: Calling,
        made: list[tuple[Tensor, int]],
        tables: list[Any],
    ) -> None:
        super().__init__(block)
        self.tables = tables
        self.number, self.calling, self.made = number, calling, made
        self.shift = 0.0

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Any:
        """Return other tokens; refuse those that the block before it did not return."""
        number = self.number
        tables = tree_leaves([options.get(name) for name in self.calling.positions])
        if number == 0:
            self.tables[:] = tables
        elif x is not self.made[-1][0] or x._version != self.made[-1][1]:
            raise UnsupportedModelError(
                f"what runs the blocks changes the tokens between blocks {number - 1} and "
                f"{number}: only towers whose blocks read what the block before them returned can "
                "be pruned"
            )
        elif len(tables) != len(self.tables) or not all(map(torch.equal, tables, self.tables)):
            raise UnsupportedModelError(
                f"block {number} is given other rotary positions than block 0: only towers whose "
                "blocks all have the same can be pruned"
            )
        ramp = torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype)
        y = self.calling.turned(x) + ramp
        y[:, :1] += self.shift * ramp**2
        tokens = self.calling.turned(y)
        self.made.append((tokens, tokens._version))
        return (tokens,) if self.calling.as_tuple else tokens


def rehearse(trial: Trial, calling: Calling, prefix: int) -> tuple[bool, str]:
    """Run a tower with stand-ins for its blocks.

    Args:
        trial: A trial of the tower, whose copy this uses up.
        calling: How its blocks are called.
        prefix: Prefix tokens P.

    Returns:
        Whether the first token counts, as a class token does; and the path of what normalizes the
        tokens, or the class token, after the blocks, "" for nothing.

    Raises:
        UnsupportedModelError: If it changes tokens between its blocks.
    """
    tower, images = trial.tower, trial.images
    blocks: Any = tower.get_submodule(trial.blocks)
    made: list[tuple[Tensor, int]] = []
    tables: list[Any] = []
    for i in range(len(blocks)):
        blocks[i] = FakeBlock(blocks[i], i, calling, made, tables)
    norms: list[str] = []

    def note_norm(path: str, module: nn.Module, args: Any) -> None:
        """Note a module if it normalizes the tokens after the last block."""
        weight = getattr(module, "weight", None)
        is_norm = isinstance(weight, Tensor) and weight.ndim == 1
        if not is_norm or len(made) < len(blocks) or not args or not isinstance(args[0], Tensor):
            return
        tokens = calling.turned(made[-1][0])
        if any(close(args[0], y) for y in (tokens, tokens.transpose(0, 1), tokens[:, 0])):
            norms.append(path)

    hooks = [
        module.register_forward_pre_hook(partial(note_norm, path))
        for path, module in tower.named_modules()
    ]
    with torch.no_grad():
        features = _features(_run(tower, images))
        for hook in hooks:
            hook.remove()
        blocks[len(blocks) - 1].shift = 1.0
        counts = [not close(*pair) for pair in zip(_features(_run(tower, images)), features)]
    return prefix > 0 and (any(counts) or not counts), next(iter(norms), "")


def _run(tower: Any, images: Tensor) -> Any:
    try:
        return tower(images)
    except Exception as error:
        raise UnsupportedModelError(
            f"{type(tower).__name__} does not run on what its blocks return "
            f"({type(error).__name__}: {error})"
        ) from error


def _features(output: Any) -> list[Tensor]:
    """Return the features [B, E] in a tower's output."""
    if isinstance(output, Tensor):
        return [output] if output.ndim == 2 and len(output) == IMAGES else []
    parts = output.values() if isinstance(output, Mapping) else output
    if not isinstance(output, (Mapping, list, tuple)):
        return []
    return [feature for part in parts for feature in _features(part)]
