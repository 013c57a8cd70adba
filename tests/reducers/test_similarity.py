"""Keeping what is most similar to the text, after the tower's last norm."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import TINY
from recorders import recorded_lengths
from tensors import LOW, autocast, randn
from torch import Tensor, nn
from towers import KINDS, make_tower

from elip_plugin import apply, find_handle, plan
from elip_plugin.config import ElipConfig
from elip_plugin.core.guide import TextGuide, check_guide, guide_from_batch
from elip_plugin.core.score import text_similarity
from elip_plugin.errors import ConfigError, GuideError, UnsupportedModelError
from elip_plugin.patching.install import find_pruner
from elip_plugin.reducers import PlannedStage, StageContext, find_reducer

NORM = nn.LayerNorm(4, elementwise_affine=False, dtype=torch.float64)


@pytest.mark.parametrize(
    ("weight", "training", "teaches"), [(1.0, True, True), (1.0, False, False), (0.0, True, False)]
)
def test_scores_are_taught_in_training_by_a_loss_on_the_choice(
    weight: float, training: bool, teaches: bool
) -> None:
    stage, guide = PlannedStage(0, 1, 2, 6, 4), randn(2, 4, seed=1).requires_grad_()
    context = StageContext(1, guide, 1.0, training=training, norm=NORM)
    made = replace(find_reducer("similarity"), choice_loss=weight)
    selection = made.decide(randn(2, 6, 4), stage, context)
    assert (selection.teach is not None) == teaches


@pytest.mark.parametrize(
    ("weight", "training", "gradient"), [(1.0, True, True), (1.0, False, False), (0.0, True, False)]
)
def test_the_text_side_is_read_with_gradient_where_a_loss_teaches_the_choice(
    weight: float, training: bool, gradient: bool
) -> None:
    asked = []

    class Text(TextGuide):
        def pooled(self) -> Tensor:
            return torch.zeros(1, 4)

        def queries(self, layers: int, gradient: bool) -> Tensor:
            asked.append((layers, gradient))
            return self.pooled()

    made = replace(find_reducer("similarity"), choice_loss=weight)
    made.read_guide(Text(), training=training)
    assert asked == [(made.cross_attentions, gradient)]


def test_options_are_taken_down_to_their_least_values() -> None:
    given = {"name": "similarity", "cross_attentions": 1, "choice_loss": 0.0}
    assert ElipConfig.from_mapping({"reducer": given}).reducer.cross_attentions == 1
    for name, low in (("cross_attentions", 0), ("choice_loss", -0.1)):
        with pytest.raises(ConfigError, match=f"{name} must be"):
            ElipConfig.from_mapping({"reducer": {"name": "similarity", name: low}})


def test_several_guides_are_taken_for_an_image_and_not_for_a_batch_of_texts() -> None:
    guides = torch.zeros(2, 5, 8)
    check_guide(guides, 2, 8, several=True)
    for texts, width, several in ((None, 8, True), (3, 8, True), (2, 9, True), (2, 8, False)):
        with pytest.raises(GuideError, match="the text guide has shape"):
            check_guide(guides, texts, width, several=several)


def test_scores_are_a_softmax_of_products_with_the_guide() -> None:
    x, guide = randn(2, 6, 4).requires_grad_(), randn(2, 4, seed=1)
    given = text_similarity(x, NORM, StageContext(2, guide, 1.0))
    y = NORM(x)[:, 2:]
    for b in range(2):
        logits = torch.stack([token @ guide[b] for token in y[b]])
        torch.testing.assert_close(given[b], logits.exp() / logits.exp().sum())
    assert not given.requires_grad
    with autocast(True):
        low = text_similarity(x.detach().float(), NORM.float(), StageContext(2, guide.float(), 1.0))
    NORM.double()
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, given.float(), rtol=1e-4, atol=1e-5)


def test_guides_that_are_0_count_for_nothing() -> None:
    """So texts of different lengths, filled with 0, are compared as each by itself."""
    x, guides = randn(2, 6, 4), randn(2, 3, 4, seed=1)
    expected = [
        text_similarity(x[b : b + 1], NORM, StageContext(1, guides[b : b + 1, : b + 1], 1.0))
        for b in range(2)
    ]
    guides[0, 1:], guides[1, 2:] = 0, 0
    given = text_similarity(x, NORM, StageContext(1, guides, 1.0))
    torch.testing.assert_close(given, torch.cat(expected))
    torch.testing.assert_close(given.sum(dim=1), torch.ones(2, dtype=torch.float64))
    nothing = text_similarity(x, NORM, StageContext(1, torch.zeros_like(guides), 1.0))
    assert torch.equal(nothing, torch.zeros(2, 5, dtype=torch.float64))


@pytest.mark.parametrize("in_autocast", [False, True])
@pytest.mark.parametrize(
    ("dtype", "wide"),
    [(LOW, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_scores_are_computed_in_float32_or_wider(
    dtype: torch.dtype, wide: torch.dtype, in_autocast: bool
) -> None:
    x, guide = randn(2, 50, 16).to(dtype), randn(2, 16, seed=1).to(dtype)
    with autocast(in_autocast):
        given = text_similarity(x, nn.Identity(), StageContext(1, guide, 1.0))
    assert given.dtype == wide
    exact = text_similarity(x.double(), nn.Identity(), StageContext(1, guide.double(), 1.0))
    assert ((given.double() - exact) / exact).abs().max() < (
        1e-13 if wide == torch.float64 else 1e-5
    )


def test_without_pairs_the_token_itself_chooses_among_the_texts() -> None:
    x, texts = randn(2, 5, 4), randn(3, 4, seed=1)
    given = text_similarity(x, NORM, StageContext(1, texts, 1.0, from_batch=True))
    own = guide_from_batch(NORM(x)[:, :1], texts)
    torch.testing.assert_close(given, text_similarity(x, NORM, StageContext(1, own, 1.0)))


@pytest.mark.parametrize("kind", KINDS)
def test_every_host_keeps_what_its_readout_finds_most_similar(kind: str) -> None:
    tower = make_tower(kind)
    model, images = tower.model.eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = tower.encode(model, images)
    stage = {"block": 3, "lookahead": 1, "keep": 0.5}
    handle = apply(model, {"stages": [stage], "reducer": "similarity", "final_unpruned": 0.5})
    handle.update_progress(0, 10)
    pruner, entered = find_pruner(model), []
    (planned,), prefix = handle.plan.stages, handle.plan.prefix
    guide = torch.randn(2, pruner.shape.width)
    hook = tower.blocks(model)[2].register_forward_hook(
        lambda module, args, out: entered.append(out[0] if isinstance(out, tuple) else out)
    )
    model.train()
    lengths = recorded_lengths(tower.blocks(model), tower.dim)
    with pruner.asked(guide=guide), handle.trace() as trace, lengths as seen:
        tower.encode(model, images).sum().backward()
    hook.remove()
    assert seen == list(handle.plan.tokens)
    assert all(p.grad is not None for m in tower.blocks(model) for p in m.parameters())
    towers = (m for m in model.modules() if vars(m).get("elip") is pruner)
    norm = next(getattr(m, pruner.norm_name) for m in towers if hasattr(m, pruner.norm_name))
    x = entered[0].movedim(tower.dim, 1).detach()
    scores = (norm(x)[:, prefix:] * guide[:, None]).sum(-1)
    best = scores.topk(planned.keep, dim=1).indices.sort(dim=1).values
    assert torch.equal(trace.stages[0].kept, best)
    find_handle(model).remove()
    with torch.no_grad():
        assert torch.equal(tower.encode(model.eval(), images), before)


def test_another_text_keeps_other_patches(tiny_clip: Any, pairs: Any) -> None:
    model, (images, texts) = tiny_clip(), pairs
    with pytest.warns(UserWarning, match="the choice tells the loss which it is"):
        handle = apply(model, {"reducer": "similarity", "preset": "fast"})
    kept = []
    for tokens in (texts, texts.flip(0), texts):
        with handle.trace() as trace:
            model(images, tokens)
        kept.append(trace.stages[-1].kept)
    assert torch.equal(kept[0], kept[2])
    assert not torch.equal(kept[0], kept[1])


def test_a_stage_costs_next_to_nothing() -> None:
    config = ElipConfig.from_mapping({"reducer": "similarity", "preset": "fast"})
    assert config.text_weight == 1
    made = plan(config, num_patches=196, depth=12)
    fast = plan(ElipConfig.preset("fast"), num_patches=196, depth=12)
    assert made.tokens == fast.tokens
    random = plan(
        ElipConfig.from_mapping({"reducer": "random", "preset": "fast"}), num_patches=196, depth=12
    )
    assert made.train_cost(768) < fast.train_cost(768)
    # One product of the width for each token that enters a stage, and no backward pass.
    block = 197 * 768 * (12 * 768 + 2 * 197)
    compared = 768 * sum(stage.tokens_in for stage in made.stages) / (12 * block)
    assert made.forward_cost(768) - random.forward_cost(768) == pytest.approx(compared)
    assert made.train_cost(768) - random.train_cost(768) == pytest.approx(compared / 3)
    assert 0 < compared < 1e-4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text_weight": 0.5}, "chooses by the text alone: leave text_weight"),
        ({"text_anneal": 0.5}, "leave text_weight and text_anneal out"),
        ({"eval_mode": "image"}, "cannot choose without a text"),
        ({"preset": "paper"}, "does not look ahead"),
    ],
)
def test_what_does_not_go_together_is_one_error(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ElipConfig.from_mapping({"reducer": "similarity", **given})


def test_a_norm_after_the_pooling_does_not_do() -> None:
    open_clip = pytest.importorskip("open_clip")

    vision = {**TINY["vision_cfg"], "attentional_pool": True, "attn_pooler_heads": 2}
    model = open_clip.CLIP(**{**TINY, "vision_cfg": vision}, output_dict=True)
    with pytest.raises(UnsupportedModelError, match="last norm, which this tower does not have"):
        apply(model, {"reducer": "similarity", "preset": "fast"})


def test_a_tower_without_a_last_norm_is_refused_and_left_alone(tiny_clip: Any) -> None:
    from elip_plugin.hosts.open_clip.models import describe
    from elip_plugin.patching import install

    model = tiny_clip()
    described = describe(model)
    classes = [type(module) for module in model.modules()]
    bare = described.__class__(
        **{**vars(described), "tower": described.tower.__class__(
            **{**vars(described.tower), "norm": None})}
    )  # fmt: skip
    with pytest.raises(UnsupportedModelError, match="last norm, which this tower does not have"):
        install.install(bare, ElipConfig.from_mapping({"reducer": "similarity"}))
    assert [type(module) for module in model.modules()] == classes
