"""Stages with an end: what they drop skips some blocks and comes back in its place."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pictures_in_memory import Picture
from recorders import recorded_lengths
from tensors import randn
from towers import KINDS, make_tower

from elip_plugin import ElipConfig, apply, find_handle
from elip_plugin.core.merge import keep_and_merge, put_back
from elip_plugin.core.select import select
from elip_plugin.core.trace import MERGED, Trace
from elip_plugin.patching.install import find_pruner
from elip_plugin.reducers import reducers
from elip_plugin.reducers.pixels import PixelReducer

DECIDING = [n for n, reducer in reducers().items() if reducer.returns and not reducer.text_alone]


def stage(block: int, until: int | None = None, keep: float = 0.5) -> dict[str, Any]:
    return {"block": block, "lookahead": 1, "keep": keep, "until": until}


def config_of(reducer: str, **fields: Any) -> dict[str, Any]:
    first = 0 if isinstance(reducers()[reducer], PixelReducer) else 2
    return {"reducer": reducer, "stages": [stage(first, 9)], "eval_mode": "image", **fields}


def test_tokens_come_back_where_they_were() -> None:
    x = randn(2, 2 + 6, 3).requires_grad_()
    selection = select(randn(2, 6, seed=1).exp(), 3)._replace(weights=None)
    kept = keep_and_merge(x, selection, 2)
    assert torch.equal(put_back(kept, x, selection, 2), x)
    worked = 10 * kept
    back = put_back(worked, x, selection, 2)
    for b in range(2):
        for i in range(6):
            factor = 10 if i in selection.kept[b].tolist() else 1
            torch.testing.assert_close(back[b, 2 + i], factor * x[b, 2 + i])
    back.sum().backward()
    assert x.grad is not None
    expected = torch.ones(2, 6).scatter(1, selection.kept, 10.0)
    assert torch.equal(x.grad[:, 2:, 0].float(), expected) and (x.grad[:, :2] == 10).all()
    assert put_back(kept.bfloat16(), x, selection, 2).dtype == torch.bfloat16


@pytest.mark.parametrize("reducer", DECIDING)
def test_what_skips_the_blocks_is_untouched_and_all_learn(reducer: str, tiny_clip: Any) -> None:
    model = tiny_clip()
    handle = apply(model, config_of(reducer, text_weight=0.0))
    first = handle.plan.stages[0].block
    assert handle.plan.tokens == (65,) * first + (33,) * (9 - first) + (65,) * 3
    blocks, entered = model.visual.transformer.resblocks, {}
    hooks = [
        blocks[i].register_forward_pre_hook(lambda m, args, i=i: entered.update({i: args[0]}))
        for i in (max(first, 1) - 1, 9)
    ]
    before: list[torch.Tensor] = []
    if first:
        hooks.append(blocks[1].register_forward_hook(lambda m, args, out: before.append(out)))
    else:
        ln = model.visual.ln_pre
        hooks.append(ln.register_forward_hook(lambda m, args, out: before.append(out)))
    images = torch.randn(2, 3, 64, 64)
    with recorded_lengths(blocks) as lengths, handle.trace() as trace:
        out = model.encode_image(images)
    for hook in hooks:
        hook.remove()
    assert lengths == list(handle.plan.tokens)
    (recorded,) = trace.stages
    assert recorded.until == 9 and recorded.merge_weights is None
    assert recorded.kept.shape == (2, 32)
    changed = (entered[9] != before[0]).any(dim=2)
    expected = torch.zeros(2, 64, dtype=torch.bool).scatter(1, recorded.kept, True)
    assert torch.equal(changed[:, 1:], expected) and changed[:, 0].all()
    assert trace.sources is not None and torch.equal(trace.sources[0], torch.eye(64))
    out.square().sum().backward()
    assert all(p.grad is not None for p in model.visual.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_every_host(kind: str) -> None:
    tower = make_tower(kind)
    model, images = tower.model.eval(), torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        before = tower.encode(model, images)
    handle = apply(model, config_of("evit"))
    with torch.no_grad():
        skipped = tower.encode(model, images)
        assert skipped.shape == before.shape and not torch.equal(skipped, before)
        assert torch.equal(tower.encode(copy.deepcopy(model), images), skipped)
        # No image depends on another.
        torch.testing.assert_close(tower.encode(model, images.flip(0)).flip(0), skipped)
        with handle.disabled():
            assert torch.equal(tower.encode(model, images), before)
    model.train()
    with recorded_lengths(tower.blocks(model), tower.dim) as lengths:
        tower.encode(model, images).square().sum().backward()
    assert lengths == list(handle.plan.tokens)
    handle.remove()
    with torch.no_grad():
        assert torch.equal(tower.encode(model.eval(), images), before)


def test_an_end_equals_the_blocks_by_hand(tiny_clip: Any) -> None:
    model = tiny_clip().eval()
    apply(model, config_of("evit"))
    transformer, entered = model.visual.transformer, []
    hook = transformer.register_forward_hook(lambda module, args, out: entered.extend((*args, out)))
    with torch.no_grad(), find_handle(model).trace() as trace:
        model.encode_image(torch.randn(2, 3, 64, 64))
        hook.remove()
        y, out = entered
        for block in transformer.resblocks[:2]:
            y = block(y)
        index = torch.cat([torch.zeros(2, 1).long(), 1 + trace.stages[0].kept], dim=1)
        index = index.unsqueeze(2).expand(-1, -1, 32)
        kept = y.gather(1, index)
        for block in transformer.resblocks[2:9]:
            kept = block(kept)
        y = y.scatter(1, index, kept)
        for block in transformer.resblocks[9:]:
            y = block(y)
    assert torch.equal(out, y)


@pytest.mark.parametrize(
    "other", ["checkpointed", pytest.param("compiled", marks=pytest.mark.slow)]
)
def test_checkpointing_and_compilation_change_nothing(
    other: str, tiny_clip: Any, pairs: Any
) -> None:
    gradients = []
    for way in ("plain", other):
        model = tiny_clip()
        apply(model, {"stages": [stage(1, 4), stage(4, 8), stage(8)]})
        model.set_grad_checkpointing(way == "checkpointed")
        run = torch.compile(model, backend="eager") if way == "compiled" else model
        assert find_handle(model).plan.tokens == (65, *[33] * 7, *[34] * 4)
        run(*pairs)["image_features"].square().mean().backward()
        gradients.append([p.grad for p in model.visual.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_schedule_keeps_the_end(tiny_clip: Any) -> None:
    model = tiny_clip()
    handle = apply(model, config_of("random", warmup=0.8))
    lengths = []
    for step in (0, 3, 5, 9):
        handle.update_progress(step, 10)
        with recorded_lengths(model.visual.transformer.resblocks) as seen:
            model.encode_image(torch.randn(2, 3, 64, 64))
        assert seen[:2] == seen[9:11] == [65, 65]
        lengths.append(seen[5])
    assert lengths == [65, 57, 49, 33]
    assert find_pruner(model).plan.tokens[5] == 33


def test_a_trace_holds_what_is_there_at_the_end() -> None:
    trace, x = Trace(prefix=1), randn(1, 7, 3)

    def apply_stage(x: Any, scores: list[float], keep: int, block: int, until: Any = None) -> Any:
        selection = select(torch.tensor([scores]), keep)
        if until is not None:
            selection = selection._replace(weights=None)
        trace.record(block, selection, x.shape[1] - 1, until)
        return keep_and_merge(x, selection, 1), selection

    y, _ = apply_stage(x, [0.1, 0.6, 0.2, 0.3, 0.5, 0.4], 4, block=1)  # merges 0 and 2
    z, kept = apply_stage(y, [0.1, 0.2, 0.3, 0.4, 0.5], 2, block=2, until=5)  # 5 and the merged
    assert trace.stages[1].kept.tolist() == [[5, MERGED]]
    assert trace.stages[1].sources.shape == (1, 2, 6)
    back = put_back(z, y, kept, 1)
    assert torch.equal(back, y)
    grid = trace.unmerge(back)
    assert torch.equal(grid[0, [1, 3, 4, 5]], y[0, 1:5])
    assert torch.equal(grid[0, [0, 2]], y[0, [5, 5]])
    _, _ = apply_stage(back, [0.5, 0.4, 0.3, 0.2, 0.1], 3, block=5)
    assert trace.stages[2].kept.tolist() == [[1, 3, 4]]


def test_an_end_is_shown(tmp_path: Any) -> None:
    pytest.importorskip("open_clip")
    from PIL import Image

    from elip_plugin import create
    from elip_plugin.visualize.stages import visualize

    mapping = {"stages": [stage(2, 6, 16), stage(6, None, 32)], "text_weight": 0.0}
    shown = create("elip-ViT-tiny", ElipConfig.from_mapping(mapping))
    made = visualize(shown, [Picture("n", Image.new("RGB", (64, 64), "red"))], [])
    first, second = made.rows[0].stages
    assert first.describe() == "16 of 64 patches kept, 48 set aside until block 6"
    assert second.describe() == "32 of 64 patches kept, 32 in one merged token"
    assert "65 tokens -> 17 at block 2 -> 65 at block 6 -> 34 at block 6" in made.plan
