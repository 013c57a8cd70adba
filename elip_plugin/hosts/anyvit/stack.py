"""A tower whose code is not known, and the list that it takes its blocks from.

In a pruned forward the list gives steps in place of its blocks. The first step runs all blocks with
the plan's stages; each step returns the tokens after its block. So it does not matter how the
tower's own loop is written, as long as it hands each block what the block before it returned.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils import checkpoint

from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.blocks import PrunableStack, call_detached, refuse_recording
from elip_plugin.patching.calls import thread
from elip_plugin.patching.forward import Call
from elip_plugin.patching.named import NamedAsReplaced, wrapped_forward
from elip_plugin.patching.swap import ATTRIBUTE

ENTRIES = ("forward", "forward_features")
"""Methods of a tower that are one forward of it, from images on; others keep all tokens."""


@dataclass(frozen=True)
class Calling:
    """How a tower calls its blocks.

    Attributes:
        sequence_first: Whether the tokens are [T, B, D]; else [B, T, D].
        as_tuple: Whether a block returns a tuple whose first element are the tokens.
        args: What it is given after the tokens; no tensors.
        options: What it is given by name; no tensors.
    """

    sequence_first: bool = False
    as_tuple: bool = False
    args: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def turned(self, x: Tensor) -> Tensor:
        """Return tokens as the blocks take them from [B, T, D], or the other way round."""
        return x.transpose(0, 1) if self.sequence_first else x


class AnyTower(NamedAsReplaced):
    """A tower, from images to features."""

    elip_norm_path: str
    """Path of what normalizes the tokens, or the class token, after the last block."""

    @property
    def elip_norm(self) -> Any:
        """What normalizes the tokens, or the class token, after the last block."""
        return attrgetter(self.elip_norm_path)(self)

    @classmethod
    def body_for(cls, replaces: Any, *data: Any) -> dict[str, Any]:
        """Return the forward, with the host's signature."""
        return wrapped_forward(replaces, *ENTRIES)

    def elip_forward(self, host: Any, args: Any, options: Any) -> Any:
        """Run the host's forward, which the list of blocks finds."""
        around = self.elip.current()
        if around is not None and around.outputs is not None:  # one entry calls the other
            return host(self, *args, **options)
        before = self.elip.open(self)  # type: ignore[arg-type]
        try:
            call = self.elip.current()
            if call is not None:  # else all tokens are kept
                call.outputs = []
                refuse_recording(getattr(self, "config", None), options)
            output = host(self, *args, **options)
        finally:
            thread.innermost = before
        if call is not None and not call.outputs:
            raise UnsupportedModelError(
                f"this {type(self).__name__} did not take its blocks from the list that was checked"
                ", so nothing was pruned (gradient checkpointing may be on): turn that off, or run "
                "it inside `handle.disabled()`"
            )
        return output


class Step:
    """What a pruned forward finds in the place of a block, with the block's attributes.

    Args:
        blocks: The list of blocks.
        number: Which block it is.
        block: The block.
    """

    def __init__(self, blocks: BlockList, number: int, block: Any) -> None:
        self.blocks, self.number, self.block = blocks, number, block

    def __call__(self, x: Tensor, *args: Any, **options: Any) -> Any:
        """Return the tokens after the block, given those after the block before it."""
        return self.blocks.elip_step(self.number, x, args, options)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the block; torch's own encoder reads some."""
        return getattr(self.block, name)


class BlockList(NamedAsReplaced, PrunableStack):
    """A `ModuleList` or `Sequential` of a tower's blocks."""

    elip_calling: Calling

    def _pruning(self) -> Call | None:
        pruner = vars(self).get(ATTRIBUTE)  # a slice of the list has none
        call: Call | None = None if pruner is None else pruner.current()
        return None if call is None or call.outputs is None else call

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the blocks, or the steps of a pruned forward."""
        host: Any = super()
        return host.__iter__() if self._pruning() is None else iter(self._steps())

    def __getitem__(self, index: Any) -> Any:
        """Return blocks, or steps of a pruned forward."""
        host: Any = super()
        return host.__getitem__(index) if self._pruning() is None else self._steps()[index]

    def _steps(self) -> list[Any]:
        return [Step(self, i, block) for i, block in enumerate(self._modules.values())]

    def elip_step(self, i: int, x: Tensor, args: Any, options: Any) -> Any:
        """Return the tokens after block i, given those after the block before it."""
        call = self._pruning()
        assert call is not None and call.outputs is not None  # steps live as long as the forward
        if i == 0:
            call.outputs = self._run(call, x, args, options)
        elif x is not call.outputs[i - 1]:
            refuse_change(i)
        out = call.outputs[i]
        return (out,) if self.elip_calling.as_tuple else out

    def _run(self, call: Call, x: Tensor, args: Any, options: Any) -> list[Tensor]:
        calling, outputs = self.elip_calling, []
        refuse_other_calling(calling, args, options)
        if not torch.compiler.is_compiling() and in_checkpoint():
            raise UnsupportedModelError(
                "a block of this tower is called inside torch.utils.checkpoint, where tokens "
                "cannot be chosen: turn gradient checkpointing off"
            )

        def run(block: Any, y: Tensor, mode: Any = None, **mode_options: Any) -> Any:
            if mode is None:
                out = block(calling.turned(y), *args, **options)
                outputs.append(out[0] if calling.as_tuple else out)
                return calling.turned(outputs[-1])
            result = call_detached(block, y, mode, **mode_options)
            outputs.append(calling.turned(result[0] if isinstance(result, tuple) else result))
            return result

        y = call.run_blocks(calling.turned(x), self._modules.values(), run)
        outputs[-1] = calling.turned(y)
        return outputs


def refuse_change(i: int) -> NoReturn:
    """Refuse a tower that changes the tokens before block i."""
    raise UnsupportedModelError(
        f"what runs the blocks changes the tokens between blocks {i - 1} and {i}: only towers "
        "whose blocks read what the block before them returned can be pruned"
    )


def in_checkpoint() -> bool:
    """Tell whether the tower in progress runs a block inside of `torch.utils.checkpoint`."""
    frame = sys._getframe()
    while frame is not None and frame.f_code is not AnyTower.elip_forward.__code__:
        if frame.f_code.co_filename == checkpoint.__file__:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def refuse_other_calling(calling: Calling, args: Any, options: Any) -> None:
    """Refuse blocks that are given other things than when they were checked, masks above all."""
    if any(isinstance(value, Tensor) for value in (*args, *options.values())):
        raise UnsupportedModelError(
            "the blocks are given a tensor besides the tokens, such as a mask, which would have to "
            "follow the tokens that are left: run this forward inside `handle.disabled()`"
        )
    if (args, options) != (calling.args, calling.options):
        raise UnsupportedModelError(
            f"the blocks are given {(args, options)} besides the tokens, and were checked with "
            f"{(calling.args, calling.options)}: run this forward inside `handle.disabled()`"
        )
