"""The tokens that enter a tower's first block: their layout, their prefix and their order."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from elip_plugin.errors import UnsupportedModelError
from elip_plugin.hosts.anyvit.finder import IMAGES, Trial
from elip_plugin.patching.rotary import rotations
from elip_plugin.patching.runner import Calling


class BlockInput(NamedTuple):
    """What enters the first block of a tower, as numbers of a `TowerShape`.

    Attributes:
        num_patches: Patches N.
        prefix: Prefix tokens P.
        width: Width D.
        calling: How the blocks are called; what they return is not known yet.
        patch_embed: Path of the convolution that makes each token of one patch; "" for none.
    """

    num_patches: int
    prefix: int
    width: int
    calling: Calling
    patch_embed: str


def find_input(trial: Trial) -> BlockInput:
    """Find out what enters the first block of a tower.

    Args:
        trial: A trial of the tower.

    Returns:
        The numbers.

    Raises:
        UnsupportedModelError: If the tokens are not a prefix and one token of each patch, row by
            row, or if the blocks are given tensors besides.
    """
    images = trial.images
    (x, args, options), convolved = _run_recording(trial, images)
    calling = Calling(x.shape[0] != IMAGES, args=args, options=options)
    x = calling.turned(x)

    def changed(rows: slice, columns: slice) -> Tensor:
        """Return by how much each token changes with some pixels [T]."""
        other = images.clone()
        other[:, :, rows, columns] += 1.0
        tokens = calling.turned(trial.run_to_block(other)[0])
        return (tokens - x).abs().amax(dim=(0, 2))

    if not torch.equal(calling.turned(trial.run_to_block(images)[0]), x):
        raise UnsupportedModelError("the tokens that enter its blocks are random (masked patches)")
    grid = tuple(next(reversed(convolved.values())).shape[2:]) if convolved else (0, 0)
    prefix = x.shape[1] - grid[0] * grid[1]
    if not convolved or prefix < 0:
        prefix = int((changed(slice(None), slice(None)) > 0).int().argmax())
        side = round((x.shape[1] - prefix) ** 0.5)
        grid = side, side
    rows, columns = (pixels // max(count, 1) for pixels, count in zip(images.shape[2:], grid))
    places = {0: (0, 0), 1: (0, 1), grid[0] * grid[1] - 1: (grid[0] - 1, grid[1] - 1)}
    apart = len(convolved) == 1
    for number, (row, column) in places.items():
        patch = slice(row * rows, (row + 1) * rows), slice(column * columns, (column + 1) * columns)
        change = changed(*patch)[prefix:]
        if len(change) != grid[0] * grid[1] or not change.max() == change[number] > 0:
            raise UnsupportedModelError(
                f"the tokens that enter its blocks: of {x.shape[1]}, none is made of patch "
                f"{number} of a grid of {grid} at its place; usual are class and register tokens, "
                "then one token of each patch, row by row"
            )
        apart &= int((change > 0).sum()) == 1
    path = next(iter(convolved), "")
    calling = with_tables(calling, grid[0] * grid[1])
    refuse_tensors(calling)
    return BlockInput(grid[0] * grid[1], prefix, x.shape[2], calling, path if apart else "")


def _run_recording(trial: Trial, images: Tensor) -> tuple[Any, dict[str, Tensor]]:
    """Enter a tower; return what its first block is given, and what convolutions made."""
    made: dict[str, Tensor] = {}

    def note(path: str, module: nn.Module, args: Any, out: Tensor) -> None:
        made[path] = out

    hooks = [
        module.register_forward_hook(partial(note, path))
        for path, module in trial.tower.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    block_input = trial.run_to_block(images)
    for hook in hooks:
        hook.remove()
    return block_input, made


def with_tables(calling: Calling, num_patches: int) -> Calling:
    """Return how blocks are called, with the options that may be rotary tables as positions."""

    def is_table(value: Any) -> bool:
        given = tree_leaves(value)
        return (
            len(given) in (1, 2)
            and all(isinstance(each, Tensor) and each.ndim >= 2 for each in given)
            and all(each.shape[:-1].numel() == each.shape[-2] == num_patches for each in given)
        )

    names = tuple(name for name, value in calling.options.items() if is_table(value))
    return replace(calling, positions=names, positions_for=rotations) if names else calling


def refuse_tensors(calling: Calling) -> None:
    """Refuse blocks that are given tensors besides the tokens, and tables of positions."""
    given = [*enumerate(calling.args, 1), *calling.options.items()]
    found = {
        name: [tuple(each.shape) for each in tree_leaves(value) if isinstance(each, Tensor)]
        for name, value in given
        if name not in calling.positions
    }
    found = {name: shapes for name, shapes in found.items() if shapes}
    if found:
        raise UnsupportedModelError(
            f"its blocks are given tensors besides the tokens, {found} by their arguments: "
            "a bias by position or a mask, which would have to follow the tokens that are left (of "
            "positions only rotary ones do: a row of a table for each patch)"
        )
