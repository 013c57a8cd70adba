"""ELIP by a draw: in proportion to the scores in training, the best in evaluation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from towers import KINDS, make_tower

from elip_plugin import apply
from elip_plugin.core.blocks import attention_row
from elip_plugin.reducers import PlannedStage, StageContext, find_reducer, gumbel

SCORES = torch.tensor([[0.4, 0.1, 0.3, 0.2]])


def decide(scores: torch.Tensor, keep: int, training: bool) -> Any:
    """Decide by scores that a fake block gives."""

    def block(x: torch.Tensor, run: Any, query: Any) -> torch.Tensor:
        assert run is attention_row
        return torch.cat([torch.zeros(len(x), 1), scores], dim=1)

    count = scores.shape[1]
    stage = PlannedStage(0, 1, keep, 1 + count, 2 + keep)
    context = StageContext(1, blocks=(block,), training=training)
    x = torch.zeros(len(scores), 1 + count, 3)
    return find_reducer("gumbel").decide(x, stage, context)


def test_noise_decides_and_the_scores_weigh(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = torch.tensor([[0.1, 0.9, 0.2, 0.5]])
    monkeypatch.setattr(gumbel, "draw", lambda *shape: numbers)
    selection = decide(SCORES, 2, training=True)
    # log score + Gumbel noise, -log(-log u): -1.75, -0.05, -1.68, -1.24.
    noisy = SCORES.log() - (-numbers.log()).log()
    assert noisy[0].argsort(descending=True).tolist() == [1, 3, 2, 0]
    assert selection.kept.tolist() == [[1, 3]] and selection.dropped.tolist() == [[2, 0]]
    assert selection.weights is not None
    torch.testing.assert_close(
        selection.weights, torch.tensor([[0.3, 0.4]]) / 0.7, rtol=1e-5, atol=1e-5
    )


def test_tokens_are_drawn_in_proportion_to_their_scores() -> None:
    torch.manual_seed(0)
    many = SCORES.expand(20_000, -1)
    first = decide(many, 1, training=True).kept.flatten().bincount(minlength=4) / len(many)
    torch.testing.assert_close(first, SCORES[0], rtol=0, atol=0.015)
    # Without replacement: the pair {0, 2} comes as 0.4 * 0.3 / 0.6 + 0.3 * 0.4 / 0.7.
    pairs = decide(many, 2, training=True).kept
    share = (pairs == torch.tensor([0, 2])).all(dim=1).float().mean()
    assert share.item() == pytest.approx(0.4 * 0.3 / 0.6 + 0.3 * 0.4 / 0.7, abs=0.015)


def test_scores_of_zero_are_drawn_last() -> None:
    scores = torch.tensor([[0.0, 0.5, 0.0, 0.5]])
    for _ in range(20):
        assert decide(scores, 2, training=True).kept.tolist() == [[1, 3]]


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_is_that_of_elip_and_training_follows_the_seed(kind: str) -> None:
    tower = make_tower(kind)
    model, images = tower.model, torch.randn(2, 3, 64, 64)
    given = {"preset": "paper", "text_weight": 0.0, "eval_mode": "image"}
    features: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        before = tower.encode(model.eval(), images)
        for reducer in ("elip", "gumbel"):
            with pytest.warns(UserWarning, match="of an unpruned forward"):
                handle = apply(model, {**given, "reducer": reducer})
            features[reducer] = tower.encode(model, images)
            if reducer == "elip":
                handle.remove()
        assert torch.equal(features["elip"], features["gumbel"])
        model.train()
        drawn = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            with handle.trace() as trace:
                tower.encode(model, images)
            drawn.append(trace.stages[-1].kept)
        assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
        handle.remove()
        assert torch.equal(tower.encode(model.eval(), images), before)


def test_the_text_guides(tiny_clip: Any, pairs: Any) -> None:
    model, kept = tiny_clip(), []
    handle = apply(model, {"reducer": "gumbel", "text_weight": 1.0})
    images, texts = pairs
    for tokens in (texts, texts, texts.flip(0)):
        torch.manual_seed(0)
        with handle.trace() as trace:
            model(images, tokens)["image_features"].sum().backward()
        kept.append(torch.cat([stage.kept for stage in trace.stages], dim=1))
    assert torch.equal(kept[0], kept[1]) and not torch.equal(kept[0], kept[2])
    assert all(p.grad is not None for p in model.visual.parameters())
