"""What does nothing, and looks as if it did, is said once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from elip_plugin.api import apply, find_handle

pytest.importorskip("open_clip")

Make = Callable[..., nn.Module]
Pairs = tuple[Tensor, Tensor]
UNPRUNED = "this model is in evaluation, and its plan prunes training alone"
UNUSED = "no forward inside `handle.guide` used its text"
FAST = {"stages": [{"block": 2, "lookahead": 1, "keep": 0.5}]}


@contextmanager
def saying(*beginnings: str) -> Iterator[None]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield
    found = [str(each.message) for each in said if "torch.jit" not in str(each.message)]
    assert len(found) == len(beginnings) and all(map(str.startswith, found, beginnings)), found


def test_an_evaluation_that_is_not_pruned(tiny_clip: Make, pairs: Pairs) -> None:
    model = tiny_clip().eval()
    with saying(UNPRUNED):
        apply(model, "half")
        for _ in range(2):
            model(*pairs)


@pytest.mark.parametrize("meant", ["trained", "eval_mode", "disabled", "another eval_mode"])
def test_an_evaluation_as_it_is_meant(meant: str, tiny_clip: Make, pairs: Pairs) -> None:
    model = tiny_clip().train(meant == "trained")
    eval_mode = "image" if meant == "eval_mode" else "full"
    with saying():
        handle = apply(model, {"preset": "half", "eval_mode": eval_mode})
        if meant == "disabled":
            with handle.disabled():
                model(*pairs)
        elif meant == "another eval_mode":
            with model.visual.elip.asked(eval_mode="full"):
                model(*pairs)
        else:
            model(*pairs)
            model.eval()(*pairs)


def test_a_model_that_nothing_trains(tiny_clip: Make, pairs: Pairs) -> None:
    """It is said where the model is pruned, and not again."""
    model = tiny_clip().eval().requires_grad_(False)
    with saying(UNPRUNED):
        apply(model, "half")
    with saying():
        model(*pairs)
    for trained in (tiny_clip().eval(), tiny_clip().train().requires_grad_(False)):
        with saying():
            apply(trained, "half")


def test_a_text_that_no_forward_uses(tiny_clip: Make, pairs: Pairs) -> None:
    images, features = pairs[0], torch.randn(4, 32)
    model = tiny_clip().train()
    apply(model, "half")
    with saying(UNUSED + ": this plan reads none"):
        for _ in range(2):
            with find_handle(model).guide(features):
                model.encode_image(images)
    model = tiny_clip().train()
    handle = apply(model, FAST)
    with saying(), handle.guide(features):
        model.encode_image(images)
    with saying(), pytest.raises(ValueError), handle.guide(features):
        raise ValueError
    with saying(UNUSED + ": evaluation reads one"), handle.guide(features):
        pass


def test_a_text_that_a_schedule_does_not_use_yet(tiny_clip: Make, pairs: Pairs) -> None:
    model = tiny_clip().train()
    handle = apply(model, {**FAST, "warmup": 0.5})
    handle.update_progress(0, 10)
    with saying(), handle.guide(torch.randn(4, 32)):
        model.encode_image(pairs[0])


def test_a_compiled_model_has_no_more_graphs_for_it(tiny_clip: Make, pairs: Pairs) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    model = tiny_clip().train()
    handle = apply(model, FAST)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for _ in range(3):
        compiled(*pairs)
        with handle.guide(torch.randn(4, 32)):
            compiled(*pairs)
    model.eval()
    compiled(*pairs)
    assert len(graphs) == 3
