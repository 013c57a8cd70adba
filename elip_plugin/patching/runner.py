"""One runner of blocks for every host: the list that a tower takes its blocks from.

In a pruned forward the list gives steps in place of the blocks before which something happens. A
step decides and applies what stands there, and runs its block as the tower would. So the tower's
own loop stays as it is, gradient checkpointing included, as long as it hands each block what the
block before it returned.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from elip_plugin.core.context import PositionOptions, StageContext, TokenState
from elip_plugin.core.merge import after_prefix, take_rows
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.calls import thread
from elip_plugin.patching.forward import Forward
from elip_plugin.patching.named import NamedAsReplaced
from elip_plugin.patching.swap import ATTRIBUTE

RECORDED = ("output_attentions", "output_hidden_states")
"""Options of transformers' towers that a pruned forward does not have."""

# Before torch 2.7 there is one function for both, and a compiled forward has no such masks.
is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)

MASKED = "bool_masked_pos"
"""The option that names the patches which somebody wants to read at their places afterwards."""


@dataclass(frozen=True)
class Calling:
    """How a tower calls its blocks.

    Attributes:
        sequence_first: Whether the tokens are [T, B, D]; else [B, T, D].
        as_tuple: Whether a block returns a tuple whose first element are the tokens.
        positions: Names of the options that are tensors by positions, which follow the tokens.
        positions_for: From these options as given, and the prefix, to what blocks are called with
            for positions; None where blocks read no positions.
        args: What a block is given after the tokens where it is checked by itself.
        options: What it is then given by name.
    """

    sequence_first: bool = False
    as_tuple: bool = False
    positions: tuple[str, ...] = ()
    positions_for: Callable[[Mapping[str, Any], int], PositionOptions | None] | None = None
    args: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def turned(self, x: Tensor) -> Tensor:
        """Return tokens as the blocks take them from [B, T, D], or the other way round."""
        return x.transpose(0, 1) if self.sequence_first else x


class PrunedTower(NamedAsReplaced):
    """A tower whose forward, from images to features, is one forward of its pruner."""

    @classmethod
    def body_for(cls, replaces: Any, *data: Any) -> dict[str, Any]:
        """Return the methods that are one forward."""
        return {name: entry_of(getattr(replaces, name)) for name in data if hasattr(replaces, name)}

    def extra_repr(self) -> str:
        """Show the plan where the model is printed."""
        host: Any = super()
        return ", ".join(filter(None, (host.extra_repr(), f"elip: {self.elip.plan.summary()}")))

    def __prepare_scriptable__(self) -> NoReturn:
        """Refuse TorchScript, which would drop the pruning."""
        raise UnsupportedModelError(
            "TorchScript cannot hold a pruned tower: train without --torchscript (--torchcompile "
            "works), or call find_handle(model).remove() to script the unpruned base model"
        )


def entry_of(host: Callable[..., Any]) -> Callable[..., Any]:
    """Return a tower's method, run as one forward of its pruner, whose blocks the list gives."""

    @functools.wraps(host)
    def method(self: Any, *args: Any, **options: Any) -> Any:
        pruner = self.elip
        before = entry = thread.innermost
        while entry is not None and entry[0] is not pruner:
            entry = entry[2]
        forward: Forward | None = None if entry is None else entry[1]
        if forward is not None and forward.tower is self:  # one method calls the other
            return host(self, *args, **options)
        if forward is None or forward.level is None or forward.tower is not None:
            forward = pruner.decide(self, guided=True)
        else:
            forward = replace(forward)  # the model's own forward has decided
        forward.tower = self
        if forward.level:
            if hasattr(self, "config"):
                refuse_recording(self.config, options)
            if (forward.guide is not None or forward.eval_mode) and in_checkpoint():
                raise UnsupportedModelError(
                    "a pruned forward inside torch.utils.checkpoint is computed anew in the "
                    "backward pass, outside of the `handle.guide()` and the like that are open "
                    "around it now: open them inside of the checkpointed function, or turn on the "
                    "model's own gradient checkpointing"
                )
        given = sum(map(torch.is_tensor, (*args, *options.values())))
        forward.exported = given == 1 and is_exporting()
        thread.innermost = (pruner, forward, before)
        try:
            output = host(self, *args, **options)
        finally:
            thread.innermost = before
        if forward.level and forward.context is None:
            raise UnsupportedModelError(
                f"this {type(self).__name__} did not take its blocks from the list that was "
                "checked, so nothing was pruned: run it inside `handle.disabled()`"
            )
        return output

    return method


class BlockList(NamedAsReplaced):
    """A `ModuleList` or `Sequential` of a tower's blocks."""

    elip_calling: Calling
    elip_steps: frozenset[int]
    """The blocks that the reducer runs."""

    elip_ahead_by_parts: bool
    """Whether looking ahead may not call a block by itself."""

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the blocks, some of them steps in a pruned forward."""
        pruner = vars(self).get(ATTRIBUTE)  # a slice of the list has none
        entry = thread.innermost
        while entry is not None and entry[0] is not pruner:
            entry = entry[2]
        if entry is None or entry[1].tower is None or not entry[1].level:
            # As one call: of `host = super()` torch.compile makes no graph on Python 3.13.
            found: Iterator[Any] = super().__iter__()  # type: ignore[misc]
            return found
        blocks: list[Any] = list(self._modules.values())
        steps = self.elip_steps
        if entry[1].exported:  # each block may be given a mask of all tokens; see `elip_step`
            steps = frozenset(range(min(steps), len(blocks)))
        for i in steps:
            blocks[i] = functools.partial(self.elip_step, blocks[i], i, entry[1], [])
        return iter(blocks)

    def __getitem__(self, index: Any) -> Any:
        """Return blocks, or steps of a pruned forward."""
        found: Any = list(self)[index]
        if isinstance(index, slice):
            pruned = any(isinstance(each, functools.partial) for each in found)
            return found if pruned else self._slice(index)
        return Step(found) if isinstance(found, functools.partial) else found

    def _slice(self, index: slice) -> Any:
        return super().__getitem__(index)  # type: ignore[misc]

    def children(self) -> Iterator[Any]:
        """Iterate as over the list; timm checkpoints what this gives."""
        return iter(self)

    def elip_step(
        self,
        block: Any,
        i: int,
        forward: Forward,
        before: list[TokenState],
        x: Tensor,
        *args: Any,
        **options: Any,
    ) -> Any:
        """Return the tokens after block i, given those after the block before it.

        `before` holds what was known of them when this ran first: where the tower checkpoints its
        blocks, it runs again in the backward pass.
        """
        calling, context = self.elip_calling, forward.context
        place = {}
        for name in calling.positions:
            if name in options:
                place[name] = options.pop(name)
        given = [*args, *options.values()]
        if given.count(None) < len(given):  # a call less for most
            if forward.exported:
                args, options = without_masks(args, options)
            refuse_masks(args, options)
        x = x.transpose(0, 1) if calling.sequence_first else x
        if context is None:
            follow = calling.positions_for
            positions = follow(place, self.elip.shape.prefix) if follow is not None else None
            context = self.elip.begin(forward, x, positions)
            context.ahead_by_parts = self.elip_ahead_by_parts
            context.state = TokenState(place=place)
        if before:
            context = copy.copy(context)
            context.state, context.trace = before[0], None
        else:
            before.append(context.state)
        blocks = tuple(self._modules.values())
        checkpoints = getattr(block, "gradient_checkpointing", False)
        if calling == PLAIN and not (checkpoints or any(args) or any(options.values())):
            context.blocks = blocks
        else:
            call = functools.partial(call_block, calling, args, options, context)
            context.blocks = [functools.partial(call, each) for each in blocks]
        x = self.elip.reducer.run_block(i, x, forward.stages, context)
        if i == len(blocks) - 1 and context.state.holders is not None:
            x = take_rows(x, after_prefix(context.state.holders, context.prefix))
            if context.trace is not None:
                context.trace.restored = True
        x = x.transpose(0, 1) if calling.sequence_first else x
        return (x,) if calling.as_tuple else x


PLAIN = Calling()


class Step:
    """A step that has the attributes of its block, of which torch's own encoder reads some."""

    def __init__(self, step: functools.partial[Any]) -> None:
        self.elip_step = step

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Run `BlockList.elip_step`."""
        return self.elip_step(*args, **options)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the block."""
        return getattr(self.elip_step.args[0], name)


def call_block(
    calling: Calling,
    given: tuple[Any, ...],
    named: Mapping[str, Any],
    context: StageContext,
    block: Any,
    x: Tensor,
    run: Any = None,
    **options: Any,
) -> Any:
    """Run a block as its tower would, or a mode of it, on tokens [B, T, D].

    The tower gives it `given` after the tokens and `named` by name, and positions as in the context
    at that moment.
    """
    call, place = block, context.state.place
    if not torch.is_grad_enabled():
        # Past a layer's own checkpointing (transformers), which would warn.
        call = functools.partial(nn.Module.__call__, block)
    if run is not None:
        if getattr(block, "gradient_checkpointing", False):
            options = {name: _detached(value) for name, value in options.items()}
            run = functools.partial(_run_detached, mode=run)
        return call(x, run=run, **place, **options)
    x = x.transpose(0, 1) if calling.sequence_first else x
    out = call(x, *given, **{**named, **place})
    out = out[0] if isinstance(out, tuple) else out
    return out.transpose(0, 1) if calling.sequence_first else out


def _run_detached(block: Any, x: Tensor, *, mode: Any, **options: Any) -> Any:
    """Run a mode of which only the tokens have a gradient, not what is beside them.

    Re-entrant checkpointing marks every tensor that it returns as having a gradient. A tensor that
    also is an input of the next block would run all the blocks before it in each backward pass.
    """
    out = mode(block, x, **options)
    return (out[0], *map(_detached, out[1:])) if isinstance(out, tuple) else out


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def refuse_masks(args: tuple[Any, ...], options: Mapping[str, Any]) -> None:
    """Refuse blocks that are given a mask, or another tensor besides the tokens."""
    tensors = list(filter(torch.is_tensor, (*args, *options.values())))
    if tensors or options.get("is_causal"):
        raise UnsupportedModelError(
            f"the blocks are given a mask, or another tensor besides the tokens, of shapes "
            f"{[tuple(each.shape) for each in tensors]}, which would have to follow the tokens "
            "that are left: leave it out, or run this forward inside `handle.disabled()`"
        )


def without_masks(
    args: tuple[Any, ...], options: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Leave out the masks of a tower that is exported, and was given images alone.

    Transformers makes a mask then, of all tokens for all tokens, where a forward has none.
    """

    def kept(value: Any) -> Any:
        is_mask = torch.is_tensor(value) and value.dtype is torch.bool
        return None if is_mask else value

    return tuple(map(kept, args)), {name: kept(value) for name, value in options.items()}


def refuse_recording(config: Any, options: Mapping[str, Any]) -> None:
    """Refuse to return what each layer made of the tokens; their number changes."""
    for name in RECORDED:
        given = options.get(name)
        if getattr(config, name, False) if given is None else given:
            raise UnsupportedModelError(
                f"{name} is not available from a pruned forward, whose layers have fewer and fewer "
                "tokens and are also run to look ahead: run it inside `handle.disabled()`, or "
                "record what was kept by `handle.trace()`"
            )
    if options.get(MASKED) is not None:
        raise UnsupportedModelError(
            f"{MASKED} is given to a pruned forward, of which not all masked patches come out: run "
            "it inside `handle.disabled()`"
        )


def in_checkpoint() -> bool:
    """Tell whether this forward runs inside of `torch.utils.checkpoint`."""
    if torch.compiler.is_compiling():
        return False
    frame: Any = sys._getframe()
    while frame is not None and frame.f_code.co_filename != checkpoint.__file__:
        frame = frame.f_back
    return frame is not None
