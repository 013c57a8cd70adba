"""Laws of two features at a time: schedules, evaluation, gradients, the order of a forward."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from elip_plugin import apply
from elip_plugin.errors import UnsupportedModelError

Make = Callable[..., Any]
Pairs = tuple[torch.Tensor, torch.Tensor]

BY_BATCH = {
    "preset": "fast",
    "text_weight": 0.8,
    "guide_source": "batch",
    "eval_mode": "text",
}


def kept_by(model: Any, handle: Any, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """What the last stage keeps, guided by these texts."""
    with torch.no_grad(), handle.guide(texts), handle.trace() as trace:
        model.encode_image(images)
    return trace.stages[-1].kept


@pytest.mark.parametrize("step", [0, 3, 9])
def test_evaluation_by_text_has_the_whole_text_weight_however_far_it_is_annealed(
    step: int, tiny_clip: Make, pairs: Pairs
) -> None:
    images = pairs[0]
    texts = [torch.randn(5, 32, generator=torch.Generator().manual_seed(s)) for s in (0, 1)]
    model, plain = tiny_clip().eval(), tiny_clip().eval()
    handle, expected = apply(model, {**BY_BATCH, "text_anneal": 0.5}), apply(plain, BY_BATCH)
    handle.update_progress(step, 10)
    kept = [kept_by(model, handle, images, each) for each in texts]
    assert not torch.equal(*kept)
    for found, each in zip(kept, texts):
        assert torch.equal(found, kept_by(plain, expected, images, each))


SILENT = {
    "disabled": {"preset": "fast"},
    "evaluation": {"preset": "fast"},
    "before the warmup": {"preset": "fast", "warmup": 0.5},
    "after the end": {"preset": "fast", "final_unpruned": 0.5},
    "text annealed away": {"preset": "fast", "text_anneal": 0.5},
    "no text weight": {"preset": "fast", "text_weight": 0.0},
}


@pytest.mark.parametrize("when", [*SILENT, "guided"])
def test_a_forward_that_reads_no_guide_encodes_in_the_hosts_order(
    when: str, tiny_clip: Make, pairs: Pairs
) -> None:
    """So what a host draws at random in both encoders is drawn in the same order."""
    model = tiny_clip()
    handle = apply(model, SILENT.get(when, {"preset": "fast"}))
    handle.update_progress(0 if when == "before the warmup" else 9, 10)
    model.train(when != "evaluation")
    order: list[str] = []
    model.visual.register_forward_pre_hook(lambda *_: order.append("image"))
    model.transformer.register_forward_pre_hook(lambda *_: order.append("text"))
    with handle.disabled() if when == "disabled" else nullcontext():
        model(*pairs)
    assert order == (["text", "image"] if when == "guided" else ["image", "text"])


@pytest.mark.parametrize("reducer", ["elip", "gumbel", "evit", "unique", "tome", "pool"])
def test_gradients_in_evaluation_are_those_of_training_with_the_same_choice(
    reducer: str, tiny_clip: Make, pairs: Pairs
) -> None:
    """A saliency map needs them, or training a head on a tower in evaluation."""
    found = []
    for training in (False, True):
        model = tiny_clip()
        # In evaluation gumbel's choice is ELIP's.
        name = "elip" if training and reducer == "gumbel" else reducer
        stages = {} if reducer == "pool" else {"preset": "fast", "text_weight": 0.0}
        apply(model, {"reducer": name, "eval_mode": "image", **stages})
        model.train(training)
        images = pairs[0].clone().requires_grad_()
        features = model.encode_image(images)
        features.square().sum().backward()
        weights = [p.grad for p in model.visual.parameters()]
        assert images.grad is not None and all(g is not None for g in weights)
        found.append((features.detach(), images.grad, *weights))
    for one, two in zip(*found):
        torch.testing.assert_close(one, two)
    with torch.no_grad():
        # Without a gradient the host takes another kernel.
        torch.testing.assert_close(model.eval().encode_image(pairs[0]), found[0][0])


def test_a_class_that_was_wrapped_later_is_refused_before_anything_is_removed(
    tiny_clip: Make, pairs: Pairs
) -> None:
    model = tiny_clip()
    handle = apply(model, "half")
    expected, block = model(*pairs)["image_features"], model.visual.transformer.resblocks[-1]
    patched = type(block)
    block.__class__ = type("Wrapped", (patched,), {})
    with pytest.raises(UnsupportedModelError, match="Wrapped was wrapped after ELIP was applied"):
        handle.remove()
    assert torch.equal(model(*pairs)["image_features"], expected)
    block.__class__ = patched
    handle.remove()
