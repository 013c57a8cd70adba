"""Guides without pairs, and a text weight that falls: what they compute and when."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import recorded_lengths

import elip_plugin
from elip_plugin import ElipConfig, apply, find_handle
from elip_plugin.core.guide import guide_from_batch
from elip_plugin.errors import ConfigError, GuideError
from elip_plugin.patching.progress import text_weight_at
from elip_plugin.reducers import elip

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


def seen_guides(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, float]]:
    """Record the guide of the images, and its weight, each time that tokens are scored."""
    seen: list[tuple[Any, float]] = []
    score = elip.score

    def spy(x: Any, blocks: Any, query: Any, **options: Any) -> Any:
        seen.append((query.guide, query.text_weight))
        return score(x, blocks, query, **options)

    def spy_batch(token: Any, guides: Any) -> Any:
        seen[-1] = (guide_from_batch(token, guides), seen[-1][1])
        return seen[-1][0]

    monkeypatch.setattr(elip, "score", spy)
    monkeypatch.setattr(sys.modules[score.__module__], "guide_from_batch", spy_batch)
    return seen


@pytest.fixture
def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    return torch.randn(4, 3, 64, 64), torch.randint(1, 500, (4, 24))


def test_a_batch_guide_does_not_know_the_pairs(
    tiny_clip: Callable[..., Any], pairs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, texts = pairs
    model = tiny_clip().train()
    apply(model, {**FAST, "guide_source": "batch"})
    seen = seen_guides(monkeypatch)
    together = model(images, texts)["image_features"]
    guides = [guide for guide, _ in seen]
    seen.clear()
    moved = model(images, texts[[2, 0, 3, 1]])["image_features"]
    assert torch.allclose(together, moved, atol=1e-5)
    for guide, (other, _) in zip(guides, seen):
        assert torch.allclose(guide, other, atol=1e-5)
    assert not torch.allclose(guides[0][0], guides[0][1])  # but each image has its own
    by_caption = tiny_clip().train()
    apply(by_caption, FAST)
    one = by_caption(images, texts)["image_features"]
    two = by_caption(images, texts[[2, 0, 3, 1]])["image_features"]
    assert not torch.allclose(one, two, atol=1e-5)


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
        elip_plugin.guide(model, prompts),
    ):
        model.encode_image(images)
    assert lengths == list(handle.plan.tokens)
    with pytest.raises(GuideError, match=r"need \(texts, \d+\): one row per text"):
        model.visual.transformer.elip.check_guide(torch.randn(2, 5, 8), torch.randn(7, 9))


def test_evaluation_by_text_needs_a_guide_without_pairs(tiny_clip: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="or guide_source 'batch', which knows no pairs"):
        apply(tiny_clip(), {**FAST, "eval_mode": "text"})


def test_the_text_weight_falls_evenly_and_then_the_image_chooses_alone(
    tiny_clip: Callable[..., Any], pairs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ElipConfig.from_mapping({**FAST, "text_anneal": 0.5})
    shares = (0.0, 0.125, 0.25, 0.5, 1.0)
    assert [text_weight_at(share, config) for share in shares] == [0.5, 0.375, 0.25, 0, 0]
    model = tiny_clip().train()
    handle = apply(model, config)
    seen = seen_guides(monkeypatch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    weights, guided = [], []
    for step in range(6):
        handle.update_progress(step, total_steps=8)
        model(*pairs)["image_features"].square().mean().backward()
        weights.append(seen[-1][1])
        guided.append(seen[-1][0] is not None)
        optimizer.step()
    assert weights == [0.5, 0.375, 0.25, 0.125, 0, 0]
    assert guided == [True] * 4 + [False] * 2
    find_handle(model).remove()


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"guide_source": "all"}, r"guide_source must be one of \['caption', 'batch'\], got 'all'"),
        ({"text_anneal": 2}, "text_anneal must be a share"),
    ],
)
def test_faults(mapping: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ElipConfig.from_mapping(mapping)


@pytest.mark.parametrize("arch", ["albef_pretrain", "blip_pretrain", "clip"])
def test_lavis_towers_take_a_batch_guide(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lavis")
    import lavis_family as family

    model = family.twin(arch, elip={**FAST, "guide_source": "batch"}).eval()
    getattr(model, "visual_encoder", getattr(model, "visual", None)).train()
    seen = seen_guides(monkeypatch)
    given = family.samples()
    guides = []
    for captions in (given["text_input"], given["text_input"][::-1]):
        family.run(arch, model, {**given, "text_input": captions})
        guides.append([guide for guide, _ in seen])
        seen.clear()
    assert guides[0]
    for one, two in zip(*guides):
        assert torch.allclose(one[: len(two)], two[: len(one)], atol=1e-4)
