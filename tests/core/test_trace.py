"""Kept indices and merge weights as data, and features back on the full grid."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import PATCHES

from elip_plugin import apply
from elip_plugin.core.merge import keep_and_merge
from elip_plugin.core.select import select
from elip_plugin.core.trace import MERGED, Trace
from elip_plugin.errors import TraceError
from elip_plugin.patching.calls import find
from elip_plugin.patching.forward import Forward
from elip_plugin.patching.install import find_pruner
from elip_plugin.reducers.tome import match, merge_pairs

BLOCKS = (2, 4, 10)


def stage(trace: Trace, x: torch.Tensor, scores: list[float], keep: int, block: int) -> Any:
    selection = select(torch.tensor([scores]), keep)
    trace.record(block, selection, x.shape[1] - 1)
    return keep_and_merge(x, selection, 1)


def test_two_stages_by_hand() -> None:
    trace, x = Trace(prefix=1), torch.randn(1, 6, 3, dtype=torch.float64)
    y = stage(trace, x, [0.1, 0.5, 0.3, 0.4, 0.2], 3, block=1)
    first = trace.stages[0]
    assert first.kept.tolist() == [[1, 2, 3]]
    assert first.merge_weights is not None
    assert torch.allclose(first.merge_weights, torch.tensor([[1 / 3, 0, 0, 0, 2 / 3]]), atol=1e-4)
    z = stage(trace, y, [0.1, 0.6, 0.2, 0.7], 2, block=3)  # drops patches 1 and 3
    second = trace.stages[1]
    assert second.kept.tolist() == [[2, MERGED]]
    assert second.merge_weights is not None
    assert torch.allclose(second.merge_weights, torch.tensor([[0, 1 / 3, 0, 2 / 3, 0]]), atol=1e-4)
    # A token is the weighted sum of its patches.
    assert torch.allclose(second.sources.double() @ x[:, 1:], z[:, 1:], atol=1e-5)
    back = trace.unmerge(z)
    assert torch.equal(back[0], z[0, [2, 3, 1, 3, 2]])
    assert torch.equal(trace.unmerge(z[:, 1:]), back)
    trace.begin()  # the next forward
    stage(trace, x, [0.1, 0.5, 0.3, 0.4, 0.2], 3, block=1)
    assert [s.block for s in trace.stages] == [1]


def pruned(tiny_clip: Callable[..., Any], **config: Any) -> tuple[Any, Any]:
    model = tiny_clip().eval()
    given = {"preset": "fast", "text_weight": 0.0, "eval_mode": "image", **config}
    return model, apply(model, given)


@pytest.mark.parametrize(
    "config", [{}, {"merge": False}, {"reducer": "random"}, {"reducer": "evit"}]
)
def test_a_towers_trace_fits_its_plan(tiny_clip: Callable[..., Any], config: Any) -> None:
    model, handle = pruned(tiny_clip, **config)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), handle.trace() as trace:
        assert trace.stages == []
        model.encode_image(images)
    assert tuple(stage.block for stage in trace.stages) == BLOCKS
    merges = config.get("merge", True) and config.get("reducer") != "random"
    present = set(range(PATCHES))
    for stage, planned in zip(trace.stages, handle.plan.stages):
        assert stage.sources.shape == (2, planned.tokens_out - 1, PATCHES)
        kept = [i for i in stage.kept[0].tolist() if i != MERGED]
        assert kept == sorted(kept) and set(kept) <= present
        present = set(kept)
        assert (stage.merge_weights is not None) == merges
        if config == {}:
            assert torch.allclose(stage.sources.sum(dim=2), torch.ones(1), atol=1e-3)
    tokens = torch.randn(2, handle.plan.tokens[-1], 5, requires_grad=True)
    grid = trace.unmerge(tokens, fill=-7.0)
    assert grid.shape == (2, PATCHES, 5)
    for place, patch in enumerate(trace.stages[-1].kept[1].tolist()):
        if patch != MERGED:
            assert torch.equal(grid[1, patch], tokens[1, 1 + place])
    assert bool((grid == -7).any()) == (not merges)
    grid.sum().backward()
    assert tokens.grad is not None and tokens.grad[:, 1:].abs().sum() > 0


def test_a_trace_changes_nothing_and_stays_inside(tiny_clip: Callable[..., Any]) -> None:
    model, handle = pruned(tiny_clip)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        plain = model.encode_image(images)
        with handle.trace() as outer:
            with handle.trace() as trace:
                assert torch.equal(model.encode_image(images), plain)
                copied = copy.deepcopy(model)
            assert find(find_pruner(copied), Forward) is None
            copied.encode_image(images)
            assert outer.stages == []
            model.encode_image(images)
        assert len(outer.stages) == len(trace.stages) == 3
        before = trace.stages
        model.encode_image(images)
    assert trace.stages is before


def test_the_text_changes_what_is_kept(tiny_clip: Callable[..., Any]) -> None:
    model = tiny_clip().train()
    handle = apply(model, {"preset": "fast", "text_weight": 1.0})
    images = torch.randn(1, 3, 64, 64)
    kept = []
    with torch.no_grad(), handle.trace() as trace:
        for seed in range(2):
            torch.manual_seed(seed)
            with handle.guide(torch.randn(1, model.visual.proj.shape[1])):
                model.encode_image(images)
            kept.append(trace.stages[1].kept)
    assert not torch.equal(kept[0], kept[1])


def test_errors(tiny_clip: Callable[..., Any]) -> None:
    model, handle = pruned(tiny_clip)
    with handle.trace() as trace:
        pass
    with pytest.raises(TraceError, match="nothing to unmerge"):
        trace.unmerge(torch.randn(1, 27, 5))
    with torch.no_grad(), handle.trace() as trace:
        model.encode_image(torch.randn(2, 3, 64, 64))
    with pytest.raises(TraceError, match=r"shape \(2, 30, 5\), but this trace ends with 1 \+ 26"):
        trace.unmerge(torch.randn(2, 30, 5))


def test_groups_by_hand() -> None:
    trace, x = Trace(prefix=1), torch.randn(2, 9, 3)
    sizes, y = torch.ones(2, 9), x
    for block, remove in ((1, 3), (2, 2)):
        second = (y.shape[1] - 1) // 2
        pairs = match(y, remove)
        merged, sizes = merge_pairs(y, sizes, pairs)
        groups = pairs.groups()
        assert groups[0, 1::2].tolist() == [len(pairs.stay[0]) + i for i in range(second)]
        y = merged
        trace.record_groups(block, groups, y.shape[1] - 1)
    assert trace.sources is not None
    torch.testing.assert_close(trace.sources @ x[:, 1:], y[:, 1:])
    torch.testing.assert_close(trace.sources.count_nonzero(dim=2).float(), sizes[:, 1:])
    stage, grid = trace.stages[-1], trace.unmerge(y)
    assert stage.groups is not None
    for patch, token in enumerate(stage.groups[1].tolist()):
        assert torch.equal(grid[1, patch], y[1, 1 + token])
        assert stage.kept[1, token] in (patch, MERGED)
    assert stage.kept[1].eq(MERGED).sum() == (sizes[1] > 1).sum()


@pytest.mark.parametrize("name", ["tome", "pool"])
def test_a_tower_that_merges_groups_is_traced(tiny_clip: Callable[..., Any], name: str) -> None:
    model = tiny_clip().eval()
    handle = apply(model, {"reducer": name, "eval_mode": "image"})
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        plain = model.encode_image(images)
        with handle.trace() as trace:
            assert torch.equal(model.encode_image(images), plain)
    assert [s.block for s in trace.stages] == [s.block for s in handle.plan.stages]
    for stage, planned in zip(trace.stages, handle.plan.stages):
        assert stage.sources.shape == (2, planned.tokens_out - 1, PATCHES)
        torch.testing.assert_close(stage.sources.sum(dim=2), torch.ones(2, planned.tokens_out - 1))
    last = trace.stages[-1].groups
    assert last is not None
    if name == "pool":
        assert last[0].view(8, 8)[:3, :4].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [4, 4, 5, 5]]


@pytest.mark.parametrize("arch", ["albef_pretrain", "blip_vqa", "clip"])
def test_lavis_models_are_traced(arch: str) -> None:
    pytest.importorskip("lavis")
    import lavis_family as family

    from elip_plugin import find_handle

    model = family.pruned(arch)
    with find_handle(model).trace() as trace:
        family.run(arch, model)
    assert tuple(stage.block for stage in trace.stages) == BLOCKS
    assert trace.stages[0].sources.shape[2] == 16
