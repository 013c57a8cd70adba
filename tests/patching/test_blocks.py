"""How blocks are called in a mode."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from elip_plugin.core.context import StageContext, TokenState
from elip_plugin.patching.runner import Calling, call_block


class Block:
    """A block of a host with re-entrant checkpointing, or without."""

    def __init__(self, gradient_checkpointing: bool) -> None:
        self.gradient_checkpointing = gradient_checkpointing

    def __call__(self, x: Tensor, run: Any = None, **options: Any) -> Any:
        return (x + 1, None) if run is None else run(self, x, **options)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_only_the_tokens_of_a_checkpointed_mode_have_a_gradient(
    checkpointed: bool, several: bool
) -> None:
    def mode(block: Any, x: Tensor, bias: Tensor, name: str, place: int) -> Any:
        assert bias.requires_grad != checkpointed and name == "kept" and place == 7
        return (2 * x, x + bias, name) if several else 2 * x

    x, bias = torch.ones(2, 3, requires_grad=True), torch.ones(3, requires_grad=True)
    context = StageContext(1, state=TokenState(place={"place": 7}))
    call = functools.partial(call_block, Calling(), (), {})
    out = call(context, Block(checkpointed), x, run=mode, bias=bias, name="kept")
    tokens, beside = (out[0], out[1:]) if several else (out, None)
    assert tokens.shape == x.shape and tokens.requires_grad
    if several:
        assert beside[0].requires_grad != checkpointed and torch.equal(beside[0], x + bias)
        assert beside[1] == "kept"


def test_a_block_by_itself_is_called_as_the_tower_does() -> None:
    given: list[Any] = []

    def block(x: Tensor, *args: Any, **options: Any) -> Any:
        given.append((x.shape, args, options))
        return x + 1, None

    context = StageContext(1, state=TokenState(place={"place": 7}))
    named = {"place": 0, "other": 1}
    call = functools.partial(call_block, Calling(sequence_first=True), ("mask",), named)
    x = torch.ones(2, 3, 4, requires_grad=True)
    assert torch.equal(call(context, block, x), x + 1)
    assert given == [((3, 2, 4), ("mask",), {"place": 7, "other": 1})]
