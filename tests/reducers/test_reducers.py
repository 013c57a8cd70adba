"""The methods to compare with: each keeps its own paper's rule and the plan's token counts."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from recorders import recorded_lengths

from elip_plugin import ElipConfig, apply, plan
from elip_plugin.core.blocks import attend, attention_row
from elip_plugin.core.merge import keep_and_merge
from elip_plugin.errors import ConfigError
from elip_plugin.reducers import PlannedStage, StageContext, find_reducer, reducers
from elip_plugin.reducers.tome import ToMe, match, merge_inside, merge_pairs

REDUCERS = ("elip", "evit", "tome", "random")
GENERATOR = torch.Generator().manual_seed(0)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def test_every_reducer_is_known_to_the_config() -> None:
    assert {*REDUCERS} <= {*reducers()}
    for name in reducers():
        assert ElipConfig.from_mapping({"reducer": name}).reducer == find_reducer(name)


@pytest.mark.parametrize("reducer", REDUCERS)
def test_all_remove_the_same_token_layers(reducer: str) -> None:
    config = ElipConfig.from_mapping({"reducer": reducer, "preset": "fast"})
    made = plan(config, num_patches=196, depth=12)
    full = plan(ElipConfig.preset("fast"), num_patches=196, depth=12)
    assert abs(sum(made.tokens) - sum(full.tokens)) <= 6  # ToMe's counts are rounded per block
    assert made.removed == pytest.approx(0.29, abs=0.01)


@pytest.mark.parametrize("reducer", REDUCERS)
def test_prunes_as_planned_and_every_weight_learns(
    reducer: str, tiny_clip: Callable[..., Any], pairs: tuple[torch.Tensor, torch.Tensor]
) -> None:
    model = tiny_clip()
    handle = apply(model, {"reducer": reducer})
    images, texts = pairs
    with recorded_lengths(model.visual.transformer.resblocks) as lengths:
        out = model(images, texts)
    assert lengths == list(handle.plan.tokens)
    (out["image_features"] * draw(4, 1).float()).sum().backward()
    assert all(p.grad is not None for p in model.visual.parameters())
    with handle.disabled():
        unpruned = model(images, texts)["image_features"]
    assert not torch.equal(unpruned, out["image_features"])
    handle.remove()
    assert torch.equal(model(images, texts)["image_features"], unpruned)


@pytest.mark.parametrize("reducer", ["evit", "tome", "random"])
def test_the_others_read_no_text(
    reducer: str, tiny_clip: Callable[..., Any], pairs: tuple[torch.Tensor, torch.Tensor]
) -> None:
    model = tiny_clip()
    apply(model, {"reducer": reducer})
    images, texts = pairs

    def encode(tokens: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return model(images, tokens)["image_features"]

    assert torch.equal(encode(texts), encode(texts.flip(0)))


def reduce(
    reducer: str, x: torch.Tensor, keep: int, scores: torch.Tensor | None = None
) -> torch.Tensor:
    """Reduce by one stage that keeps and merges; a fake block gives the scores."""

    def block(x: torch.Tensor, run: Any, query: Any) -> torch.Tensor:
        assert run is attention_row and query is None
        return torch.cat([torch.zeros(len(x), 1), scores], dim=1)

    stage = PlannedStage(0, 1, keep, x.shape[1], 1 + keep + 1)
    context = StageContext(1, blocks=(block,))
    return keep_and_merge(x, find_reducer(reducer).decide(x, stage, context), 1)


def test_evit_fuses_by_the_attention_itself() -> None:
    """Not by normalized attention, as ELIP does."""
    x = draw(1, 6, 3)
    scores = torch.tensor([[0.1, 0.4, 0.05, 0.3, 0.15]], dtype=torch.float64)
    out = reduce("evit", x, 2, scores)
    fused = 0.1 * x[0, 1] + 0.05 * x[0, 3] + 0.15 * x[0, 5]
    expected = torch.stack([x[0, 0], x[0, 2], x[0, 4], fused])
    torch.testing.assert_close(out[0], expected)


def test_random_keeps_a_subset_in_order_and_follows_the_seed() -> None:
    x = torch.arange(40, dtype=torch.float64).view(2, 20, 1)
    torch.manual_seed(3)
    first, second = reduce("random", x, 8), reduce("random", x, 8)
    torch.manual_seed(3)
    assert torch.equal(reduce("random", x, 8), first)
    assert first.shape == (2, 10, 1)  # as many as ELIP leaves, its merged token included
    assert not torch.equal(first, second)
    assert torch.equal(first, first.sort(dim=1).values)
    assert torch.equal(first[:, 0], x[:, 0])
    assert all(len(set(row.flatten().tolist())) == 10 for row in first)
    assert not torch.equal(first[1] - 20, first[0])


def test_tome_merges_the_most_similar_pair_by_size() -> None:
    keys = torch.tensor([[[9.0, 9.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [1.0, 0.1]]])
    sizes = torch.tensor([[1.0, 3.0, 1.0, 1.0, 1.0]])
    x = draw(1, 5, 2).float()
    merged, counts = merge_pairs(x, sizes, match(keys, 1))
    # Patches 0 and 2 look for partners among 1 and 3: 0 finds 3, the closest pair of all.
    expected = torch.stack([x[0, 0], x[0, 3], x[0, 2], (3 * x[0, 1] + x[0, 4]) / 4])
    torch.testing.assert_close(merged[0], expected)
    assert counts.tolist() == [[1.0, 1.0, 1.0, 4.0]]


def test_tome_loses_no_patch() -> None:
    x, sizes = draw(3, 20, 4), torch.randint(1, 5, (3, 20), generator=GENERATOR).double()
    merged, counts = merge_pairs(x, sizes, match(draw(3, 20, 4), 7))
    assert merged.shape == (3, 13, 4)
    assert torch.equal(counts.sum(1), sizes.sum(1))
    weighted = (merged * counts.unsqueeze(-1)).sum(1)
    torch.testing.assert_close(weighted, (x * sizes.unsqueeze(-1)).sum(1))


def test_tome_attends_as_if_each_token_were_there_as_often_as_its_size() -> None:
    q, k, v = draw(1, 2, 3, 4), draw(1, 2, 3, 4), draw(1, 2, 3, 4)
    sizes = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    repeats = torch.tensor([1, 2, 3])
    whole = torch.nn.functional.scaled_dot_product_attention(
        q, k.repeat_interleave(repeats, 2), v.repeat_interleave(repeats, 2)
    )
    block: Any = SimpleNamespace(
        elip_scale=None,
        elip_project=lambda x: (q, k, v),
        elip_project_output=lambda joined: joined,
        elip_attend=lambda x, bias: attend(block, x, bias),
        elip_feed_forward=torch.zeros_like,
        elip_stochastic_depth=lambda added: added,
    )
    x = torch.zeros(1, 3, 8, dtype=torch.float64)
    mixed, counts, _ = merge_inside(block, x, sizes, how=ToMe(), remove=0, prefix=1)
    torch.testing.assert_close(mixed, whole.transpose(1, 2).flatten(2), rtol=1e-12, atol=1e-12)
    assert torch.equal(counts, sizes)


def test_tome_without_merging_is_the_block(tiny_clip: Callable[..., Any]) -> None:
    model = tiny_clip()
    apply(model, {"reducer": "tome"})
    block, x = model.visual.transformer.resblocks[0], draw(2, 9, 32).float()
    given = torch.ones(2, 9)
    out, sizes, _ = block(x, run=merge_inside, how=ToMe(), sizes=given, remove=0, prefix=1)
    torch.testing.assert_close(out, block(x))
    assert torch.equal(sizes, torch.ones(2, 9))


def test_checkpointing_changes_nothing_for_tome(
    tiny_clip: Callable[..., Any], pairs: tuple[torch.Tensor, torch.Tensor]
) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny_clip()
        apply(model, {"reducer": "tome"})
        model.set_grad_checkpointing(checkpointing)
        model(*pairs)["image_features"].square().mean().backward()
        gradients.append([p.grad for p in model.visual.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"reducer": "flip"}, "reducer 'flip' is not known"),
        ({"reducer": "evit", "text_weight": 0.2}, "'evit' reads no text"),
        ({"reducer": "random", "preset": "paper"}, "does not look ahead: use preset 'fast'"),
    ],
)
def test_faults(mapping: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ElipConfig.from_mapping(mapping)


def test_a_drawn_choice_merges_nothing_and_leaves_as_many(tiny_clip: Callable[..., Any]) -> None:
    model = tiny_clip().eval()
    handle = apply(model, {"reducer": "random", "eval_mode": "image", "merge": False})
    with torch.no_grad(), handle.trace() as trace:
        model.encode_image(torch.randn(2, 3, 64, 64))
    counts = [stage.sources.shape[1] for stage in trace.stages]
    assert counts == [stage.tokens_out - 1 for stage in handle.plan.stages]


def test_lavis_towers_take_every_reducer() -> None:
    vit = pytest.importorskip("lavis.models.vit")
    tower = vit.VisionTransformerEncoder(img_size=64, embed_dim=32, num_heads=4).train()
    for reducer in REDUCERS:
        handle = apply(tower, {"reducer": reducer, "text_weight": 0.0})
        with recorded_lengths(tower.blocks) as lengths:
            tower(torch.randn(2, 3, 64, 64)).sum().backward()
        assert lengths == list(handle.plan.tokens), reducer
        handle.remove()
