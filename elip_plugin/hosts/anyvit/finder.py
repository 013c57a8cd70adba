"""Finding the vision tower of a model whose code is not known, and the list of its blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from elip_plugin.errors import UnsupportedModelError
from elip_plugin.hosts.anyvit.copies import copied, draw_weights

IMAGES = 3
"""Images of a batch on which towers are tried."""

SIDES = (224, 384, 256, 288, 336, 448, 512, 518, 576, 196, 128, 96, 64, 32)
"""Sides of images that are tried where no attribute names one that fits."""

ATTRIBUTES = ("image_size", "img_size", "input_resolution", "input_size")
"""Attributes in which modules and their configs keep the side of an image."""


class ReachedError(Exception):
    """The first block was reached."""


class BlockProxy(nn.Module):
    """Stands in the place of a block, and has its attributes: torch's own encoder reads some.

    Args:
        block: The block.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        vars(self)["block"] = block  # not as a part

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the block."""
        return getattr(vars(self)["block"], name)


class StopAtBlock(BlockProxy):
    """Remembers what the block is given.

    Args:
        block: The block.
        seen: Where to note it: the tokens, and what is given besides.
    """

    def __init__(self, block: Any, seen: list[Any]) -> None:
        super().__init__(block)
        self.seen = seen

    def forward(self, *args: Any, **options: Any) -> Any:
        """Stop the forward."""
        self.seen.append((*args[:1], args[1:], options))
        raise ReachedError


@dataclass
class Trial:
    """A copy of a tower without its blocks, which runs on images up to the first of them.

    Attributes:
        path: Path of the tower in its model; "" for the model itself.
        blocks: Path of the list of its blocks in the tower.
        tower: The copy.
        images: Random images [B, 3, height, width].
        seen: What the blocks were given.
    """

    path: str
    blocks: str
    tower: Any
    images: Tensor
    seen: list[Any]

    def run_to_block(self, images: Tensor) -> tuple[Any, Any, Any]:
        """Run the tower up to its first block; return what that is given.

        Args:
            images: Images [B, 3, height, width].

        Returns:
            The tokens, the arguments after them and those by name.
        """
        self.seen.clear()
        try:
            with torch.no_grad():
                self.tower(images)
        except ReachedError:
            if len(self.seen[-1]) < 3:
                raise UnsupportedModelError(
                    f"its blocks are given their tokens by name, {list(self.seen[-1][1])}, and not "
                    "as the first argument"
                ) from None
            found: tuple[Any, Any, Any] = self.seen[-1]
            return found
        raise UnsupportedModelError("it does not call the blocks of its list")


def block_lists(model: nn.Module) -> Iterator[str]:
    """Iterate over the paths of lists whose modules may be the blocks of a tower.

    Args:
        model: A model.

    Yields:
        Paths of those `ModuleList` and `Sequential` whose modules are two or more of one class,
        each with two linear layers or more.
    """
    for path, module in model.named_modules():
        if not isinstance(module, (nn.ModuleList, nn.Sequential)):
            continue
        kinds = {type(child) for child in module.children()}
        if len(module) > 1 and len(kinds) == 1:
            matrices = [weight for weight in module[0].parameters() if weight.ndim == 2]
            if len(matrices) >= 2:
                yield path


def try_tower(model: nn.Module, path: str, blocks: str, sides: Sequence[tuple[int, int]]) -> Trial:
    """Try a module as the tower of some blocks.

    Args:
        model: The model; it stays as it is.
        path: Path of the module in it.
        blocks: Path of the list of blocks in the module.
        sides: Rows and columns of pixels to try.

    Returns:
        The trial whose blocks are given tokens.

    Raises:
        UnsupportedModelError: If there is none, with what happens on the first sides.
    """
    tower = model.get_submodule(path)
    seen: list[Any] = []
    stubs: dict[int, Any] = {}
    for other in block_lists(tower):
        stubs |= {
            id(block): StopAtBlock(block, []) for block in tower.get_submodule(other).children()
        }
    stubs |= {
        id(block): StopAtBlock(block, seen) for block in tower.get_submodule(blocks).children()
    }
    copy = copied(tower, stubs)
    draw_weights(copy)
    refusals: list[str] = []
    for side in sides:
        images = torch.rand(IMAGES, 3, *side, dtype=torch.float64)
        trial = Trial(path, blocks, copy, images, seen)
        try:
            tokens = trial.run_to_block(trial.images)[0]
        except Exception as error:  # as it is no tower, or has no such images
            refusals.append(f"on images {(3, *side)}: {type(error).__name__}: {error}")
            continue
        if isinstance(tokens, Tensor) and tokens.ndim == 3 and IMAGES in tokens.shape[:2]:
            return trial
        shape = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
        refusals.append(
            f"its blocks are given {shape}, where tokens [B, T, D] or [T, B, D] are usual (of "
            "windows, for example)"
        )
    raise UnsupportedModelError(refusals[0])


def sides_of(model: nn.Module) -> list[tuple[int, int]]:
    """List the sides of images to try: those that the model's attributes name, then usual ones."""
    found: list[Any] = []
    for module in model.modules():
        for owner in (module, getattr(module, "config", None)):
            found += [getattr(owner, name, None) for name in ATTRIBUTES]
    pairs = [(side, side) if type(side) is int else side for side in (*found, *SIDES)]
    whole = [tuple(side) for side in pairs if isinstance(side, (tuple, list)) and len(side) == 2]
    fitting = [side for side in whole if all(type(n) is int and n > 1 for n in side)]
    return list(dict.fromkeys(fitting))


def find_tower(model: nn.Module, blocks: str | None, sides: Sequence[tuple[int, int]]) -> Trial:
    """Find the tower of a model: the smallest module that runs on images and calls its blocks.

    Args:
        model: The model; it stays as it is.
        blocks: Path of the list of its blocks; None to look for it.
        sides: Rows and columns of pixels to try.

    Returns:
        A trial of it.

    Raises:
        UnsupportedModelError: If there is none, or more than one.
    """
    lists = list(block_lists(model)) if blocks is None else [blocks]
    found: list[Trial] = []
    refusals: list[str] = []
    for path in lists:
        names = path.split(".") if path else []
        for end in range(len(names), -1, -1):
            tower = ".".join(names[:end])
            if isinstance(model.get_submodule(tower), nn.ModuleList):
                continue
            try:
                found.append(try_tower(model, tower, ".".join(names[end:]), sides))
                break
            except UnsupportedModelError as error:
                last = f"{path}: {tower or type(model).__name__} does not run: {error}"
        else:
            refusals.append(last)
    if len(found) == 1:
        return found[0]
    name = type(model).__name__
    if found:
        paths = [f"{trial.path}.{trial.blocks}".strip(".") for trial in found]
        raise UnsupportedModelError(
            f"{name} has several lists of blocks that run on images: {paths}; say which is the "
            "tower's by elip_plugin.describe(model, blocks=...)"
        )
    if not lists:
        raise UnsupportedModelError(
            f"in {name} no list of blocks was found: a ModuleList or Sequential of modules of one "
            "class, each with an attention and an MLP"
        )
    raise UnsupportedModelError(
        f"in {name} no module was found that runs on images alone and calls these blocks. "
        f"{'; '.join(refusals)}. Other sides of images: elip_plugin.describe(model, image_size=...)"
    )
