"""Guides without pairs, and a text weight that falls: what they compute and when."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from recorders import recorded_lengths

import elip_plugin
from elip_plugin import ElipConfig, Handle, apply, find_handle
from elip_plugin.core.context import StageContext
from elip_plugin.core.guide import check_guide, guide_from_batch, project_to_vision_width
from elip_plugin.core.score import text_similarity
from elip_plugin.errors import ConfigError, GuideError
from elip_plugin.patching.progress import text_weight_at

FAST = {"preset": "fast", "text_weight": 0.5}


def test_texts_weigh_by_their_similarity_to_the_token() -> None:
    token = torch.tensor([[[3.0, 0.0]], [[0.0, 0.1]]])
    guides = torch.tensor([[2.0, 0.0], [0.0, 5.0], [-1.0, 0.0]])
    cosines = torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    expected = torch.stack(
        [sum(w * g for w, g in zip(row, guides)) for row in (cosines / 0.07).softmax(1)]
    )
    assert torch.allclose(guide_from_batch(token, guides), expected)
    # Docs promise CLIP's first temperature: two cosines 0.07 apart weigh as e to 1.
    texts = torch.tensor([[1.0, 0.0], [0.93, (1 - 0.93**2) ** 0.5]])
    made = guide_from_batch(torch.tensor([[[1.0, 0.0]]]), texts)
    share = 1 / (1 + math.exp(-1))
    torch.testing.assert_close(made[0], share * texts[0] + (1 - share) * texts[1])


def test_a_guide_of_the_batch_is_detached_from_texts_and_token() -> None:
    """Where the choice is taught as well: other images' texts learn nothing by this image."""
    x, texts = torch.randn(2, 5, 4).requires_grad_(), torch.randn(3, 4).requires_grad_()
    assert not guide_from_batch(x[:, :1], texts).requires_grad
    norm = torch.nn.LayerNorm(4)
    context = StageContext(1, texts, 1.0, from_batch=True)
    text_similarity(x, norm, context, gradient=True).square().sum().backward()
    assert norm.weight.grad is not None and x.grad is None and texts.grad is None


def test_features_of_another_width_are_refused_by_both_shapes() -> None:
    with pytest.raises(GuideError, match=r"shape \(2, 3\), but this model guides by \(batch, 4\)"):
        project_to_vision_width(torch.zeros(2, 3), [torch.zeros(4, 6)])


def kept_in_training(handle: Handle, images: Any, texts: Any) -> list[torch.Tensor]:
    """Which tokens each stage keeps."""
    with handle.trace() as trace:
        handle.model(images, texts)
    return [stage.kept for stage in trace.stages]


def equal(one: list[torch.Tensor], two: list[torch.Tensor]) -> bool:
    assert len(one) == len(two) > 0
    return all(torch.equal(a, b) for a, b in zip(one, two))


@pytest.fixture
def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    return torch.randn(4, 3, 64, 64), torch.randint(1, 500, (4, 24))


def test_a_batch_guide_does_not_know_the_pairs(tiny_clip: Callable[..., Any], pairs: Any) -> None:
    images, texts = pairs
    moved, others = texts[[2, 0, 3, 1]], texts.flip(1)
    for source in ("batch", "caption"):
        handle = apply(tiny_clip().train(), {**FAST, "text_weight": 1.0, "guide_source": source})
        kept = [kept_in_training(handle, images, each) for each in (texts, moved, others)]
        assert equal(kept[0], kept[1]) == (source == "batch")
        assert not equal(kept[0], kept[2])


def test_a_batch_guide_takes_any_number_of_texts_also_at_test_time(
    tiny_clip: Callable[..., Any], pairs: Any
) -> None:
    images, _ = pairs
    model = tiny_clip().eval()
    handle = apply(model, {**FAST, "guide_source": "batch", "eval_mode": "text"})
    prompts = torch.randn(7, model.text_projection.shape[1])
    with (
        torch.no_grad(),
        recorded_lengths(model.visual.transformer.resblocks) as lengths,
        elip_plugin.find_handle(model).guide(prompts),
    ):
        model.encode_image(images)
    assert lengths == list(handle.plan.tokens)
    with pytest.raises(GuideError, match=r"need \(texts, \d+\): one row per text"):
        check_guide(torch.randn(7, 9), None, 8)


def test_evaluation_by_text_needs_a_guide_without_pairs(tiny_clip: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="or guide_source 'batch', which knows no pairs"):
        apply(tiny_clip(), {**FAST, "eval_mode": "text"})


def test_the_text_weight_falls_evenly_and_then_the_image_chooses_alone(
    tiny_clip: Callable[..., Any], pairs: Any
) -> None:
    config = ElipConfig.from_mapping({**FAST, "text_anneal": 0.5})
    shares = (0.0, 0.125, 0.25, 0.5, 1.0)
    assert [text_weight_at(share, config) for share in shares] == [0.5, 0.375, 0.25, 0, 0]
    handle = apply(tiny_clip().train(), config)
    kept = []
    for step, weight in enumerate((0.5, 0.375, 0.25, 0.125, 0.0, 0.0)):
        handle.update_progress(step, total_steps=8)
        kept.append(kept_in_training(handle, *pairs))
        fixed = apply(tiny_clip().train(), {**FAST, "text_weight": weight})
        assert equal(kept[-1], kept_in_training(fixed, *pairs))
    assert not any(equal(one, two) for one, two in pairwise(kept[:5]))
    assert equal(*kept[4:])


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"guide_source": "all"}, r"guide_source must be one of \['caption', 'batch'\], got 'all'"),
        ({"text_anneal": 2}, "text_anneal must be a number"),
    ],
)
def test_faults(mapping: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ElipConfig.from_mapping(mapping)


@pytest.mark.parametrize("arch", ["albef_pretrain", "blip_pretrain", "clip"])
def test_lavis_towers_take_a_batch_guide(arch: str) -> None:
    pytest.importorskip("lavis")
    import lavis_family as family
    import lavis_recorders as recorders

    given = family.samples()
    for source in ("batch", "caption"):
        elip = {"preset": "fast", "text_weight": 1.0, "guide_source": source}
        model = family.pruned(arch, elip=elip).eval()
        recorders.tower(model).train()
        kept = []
        for captions in (given["text_input"], given["text_input"][::-1]):
            with find_handle(model).trace() as trace, torch.no_grad():
                family.run(arch, model, {**given, "text_input": captions})
            kept.append([stage.kept for stage in trace.stages])
        assert equal(*kept) == (source == "batch")
