"""How blocks are called in a mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from elip_plugin.patching.blocks import call_detached


@pytest.mark.parametrize("several", [False, True])
def test_only_the_tokens_of_a_detached_call_have_a_gradient(several: bool) -> None:
    def block(x: Tensor, elip: Any, **options: Any) -> Any:
        return elip(block, x, **options)

    def mode(block: Any, x: Tensor, bias: Tensor, name: str) -> Any:
        assert not bias.requires_grad and name == "kept"
        return (2 * x, x + bias, name) if several else 2 * x

    x, bias = torch.ones(2, 3, requires_grad=True), torch.ones(3, requires_grad=True)
    out = call_detached(block, x, mode, bias=bias, name="kept")
    tokens, beside = (out[0], out[1:]) if several else (out, None)
    assert tokens.shape == x.shape and tokens.requires_grad
    if several:
        assert not beside[0].requires_grad and torch.equal(beside[0], x + bias)
        assert beside[1] == "kept"
