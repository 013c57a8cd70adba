"""Numbers that are not finite, equal or extreme: no picture's choice depends on another's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import TINY, recorded_lengths
from torch import Tensor

from benchmarks.faults.counting import is_long, measured, tried
from elip_plugin import apply, find_handle
from elip_plugin.core.select import select
from elip_plugin.reducers import reducers
from elip_plugin.reducers.tome import match, merge_pairs

Make = Callable[..., Any]
TEXT = ("elip", "gumbel", "similarity")
NAMES = [name for name in reducers()]
BAD = (math.nan, math.inf, -math.inf)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def config_of(name: str) -> dict[str, Any]:
    """By an image's own caption evaluation may not prune; in training it does."""
    mode = {"reducer": name, "eval_mode": "full" if name in TEXT else "image"}
    return {**mode, "text_weight": 0.5} if name in ("elip", "gumbel") else mode


def pruned(make: Make, name: str, dtype: torch.dtype = torch.float32, **vision: Any) -> Any:
    model = make(**vision)
    apply(model, config_of(name))
    return model.to(dtype).train(name in TEXT)


def encode(model: Any, images: Tensor, guides: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Features, and what each stage keeps."""
    handle = find_handle(model)
    torch.manual_seed(0)
    with torch.no_grad(), handle.trace() as trace:
        if handle.config.text_weight > 0:
            with handle.guide(guides):
                features = model.encode_image(images)
        else:
            features = model.encode_image(images)
    assert trace.stages
    return features, [s.groups if s.groups is not None else s.kept for s in trace.stages]


def inputs(batch: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, 3, 64, 64, generator=generator)
    return images.to(dtype), torch.randn(batch, 32, generator=generator).to(dtype)


@pytest.mark.filterwarnings("ignore:the text that chooses")
@pytest.mark.parametrize("dtype", DTYPES if is_long() else DTYPES[:1], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_picture_that_is_not_finite_changes_no_other(
    name: str, dtype: torch.dtype, tiny_clip: Make
) -> None:
    model = pruned(tiny_clip, name, dtype)
    images, guides = inputs(dtype=dtype)
    expected, kept = encode(model, images, guides)
    assert expected.isfinite().all()
    others = [0, 1, 3]
    for value in BAD:
        for where in ("pixel", "patch", "picture"):
            spoiled = images.clone()
            if where == "pixel":
                spoiled[2, 0, 9, 9] = value
            elif where == "patch":
                spoiled[2, :, :8, 8:16] = value
            else:
                spoiled[2] = value
            features, now = encode(model, spoiled, guides)
            assert all(torch.equal(a[others], b[others]) for a, b in zip(now, kept, strict=True))
            assert torch.equal(features[others], expected[others])
            # And nothing hides it; who drops patches unmerged may drop that one.
            assert name in ("cluster", "pool") or not features[2].isfinite().all()
            tried("pictures that are not finite")


@pytest.mark.filterwarnings("ignore:the text that chooses")
@pytest.mark.parametrize("name", TEXT)
def test_a_guide_that_is_not_finite_changes_no_other(name: str, tiny_clip: Make) -> None:
    model = pruned(tiny_clip, name)
    images, guides = inputs()
    expected, kept = encode(model, images, guides)
    for value in BAD:
        spoiled = guides.clone()
        spoiled[2, 3] = value
        features, now = encode(model, images, spoiled)
        others = [0, 1, 3]
        assert all(torch.equal(a[others], b[others]) for a, b in zip(now, kept, strict=True))
        assert torch.equal(features[others], expected[others])
        tried("guides that are not finite")


@pytest.mark.filterwarnings("ignore:the text that chooses")
@pytest.mark.parametrize("name", TEXT)
def test_a_guide_of_zeros(name: str, tiny_clip: Make) -> None:
    model = pruned(tiny_clip, name)
    images, guides = inputs()
    guides[1] = 0
    features, kept = encode(model, images, guides)
    assert features.isfinite().all()
    if name == "similarity":  # the text says nothing: the first ones stay
        assert torch.equal(kept[0][1], torch.arange(kept[0].shape[1]))
        assert not torch.equal(kept[0][0], kept[0][1])
    tried("guides of zeros")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_scores_keep_the_first(dtype: torch.dtype) -> None:
    for batch in (1, 2, 7):
        for tokens in (2, 3, 16, 17, 196):
            keep = max(1, tokens // 3)
            for value in (0.0, 1 / tokens, math.inf, math.nan):
                chosen = select(torch.full((batch, tokens), value, dtype=dtype), keep)
                assert torch.equal(chosen.kept, torch.arange(keep).expand(batch, -1))
                assert torch.equal(chosen.dropped, torch.arange(keep, tokens).expand(batch, -1))
                tried("scores that are all equal")
            pairs = match(torch.ones(batch, 1 + tokens, 4, dtype=dtype), min(keep, tokens // 2))
            assert torch.equal(pairs.gone[:1].expand_as(pairs.gone), pairs.gone)
            assert torch.equal(pairs.gone[0], torch.arange(pairs.gone.shape[1]))
            assert not pairs.into.any()
            tried("scores that are all equal")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_choice_does_not_depend_on_the_place_in_the_batch(dtype: torch.dtype) -> None:
    """Half of the scores equal others; a row alone, first, last or repeated chooses the same."""
    scores = (torch.rand(1, 50, generator=torch.Generator().manual_seed(0)) * 5).round().to(dtype)
    alone = select(scores, 20)
    for batch in (2, 3, 9):
        for place in {0, 1, batch - 1}:
            many = torch.rand(batch, 50).to(dtype)
            many[place] = scores
            chosen = select(many, 20)
            assert torch.equal(chosen.kept[place], alone.kept[0])
            assert torch.equal(chosen.dropped[place], alone.dropped[0])
            tried("places in a batch")


@pytest.mark.filterwarnings("ignore:the text that chooses")
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("random", "cluster", "gumbel")])
def test_a_picture_alone_is_pruned_as_in_a_batch(
    name: str, dtype: torch.dtype, tiny_clip: Make
) -> None:
    model = pruned(tiny_clip, name, dtype)
    images, guides = inputs(5, dtype)
    features, kept = encode(model, images, guides)
    for order in ([4, 3, 2, 1, 0], [2], [0, 3]):
        some, now = encode(model, images[order], guides[order])
        assert all(torch.equal(a, b[order]) for a, b in zip(now, kept, strict=True))
        torch.testing.assert_close(some, features[order])
        tried("places in a batch")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_towers_of_few_patches_and_blocks(name: str, tiny_clip: Make) -> None:
    """They are pruned as planned, or refused with numbers."""
    from faults.outcomes import outcome

    for side in (1, 2, 3) if is_long() else (1, 2):
        for depth in (1, 2, 3) if is_long() else (1,):
            for keep in (0.3, 0.5, 2):
                model = tiny_clip(layers=depth, image_size=8 * side)
                stages = [{"block": 0, "lookahead": 1, "keep": keep}]
                config = {**config_of(name), "stages": stages}
                config["eval_mode"] = "full"
                handle = outcome(lambda m=model, c=config: apply(m, c))
                if handle is not None:
                    out = model(torch.randn(2, 3, 8 * side, 8 * side), torch.ones(2, 24).long())
                    assert out["image_features"].isfinite().all()
                    handle.remove()
                assert not [n for m in model.modules() for n in vars(m) if n.startswith("elip")]
                tried("towers of few patches or blocks")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES if is_long() else ["tome"])
def test_four_thousand_patches(name: str, tiny_clip: Make) -> None:
    model = tiny_clip(layers=3, image_size=512, width=32)
    config = config_of(name)
    if name not in ("pool", "cluster"):
        config["stages"] = [{"block": 1, "lookahead": 1, "keep": 0.25}]
    handle = apply(model, {**config, "eval_mode": "full"})
    with recorded_lengths(model.visual.transformer.resblocks) as lengths:
        out = model(torch.randn(1, 3, 512, 512), torch.ones(1, 24).long())["image_features"]
    out.square().sum().backward()
    assert lengths == [*handle.plan.tokens] and handle.plan.num_patches == 4096
    assert out.isfinite().all() and model.visual.conv1.weight.grad.isfinite().all()
    tried("towers of 4,096 patches")


def test_sizes_of_merged_tokens_stay_exact() -> None:
    """Sums of sizes in half precision would round above 2,048 patches; they are counted apart."""
    tokens = 4096
    x, sizes = torch.ones(1, 1 + tokens, 2), torch.ones(1, 1 + tokens)
    while x.shape[1] > 2:
        pairs = match(x, (x.shape[1] - 1) // 2)
        x, sizes = merge_pairs(x, sizes, pairs)
    assert sizes[0].tolist() == [1, tokens]
    tried("towers of 4,096 patches")


def sqnr(found: Tensor, exact: Tensor) -> float:
    """Signal over quantization noise in decibels."""
    noise = (found.double() - exact).square().mean()
    return float(10 * torch.log10(exact.square().mean() / noise))


PRECISIONS = ("fp32", "bf16", "fp16", "bf16 autocast")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
@pytest.mark.parametrize("host", ["OpenCLIP", "timm", "transformers"])
def test_signal_to_noise(host: str) -> None:
    """Of features against fp64, choices included; a table for the page."""
    from copy import deepcopy

    from test_threads import CASES

    case = CASES[host]()
    model = case.model.eval()
    pictures = case.batch(0)
    images = pictures["pixel_values"] if isinstance(pictures, dict) else pictures[0]
    names = ["unpruned", *(n for n in NAMES if n not in (*TEXT, "random", "cluster"))]
    for name in names:
        if name != "unpruned":
            apply(model, config_of(name))
        exact = _features(case, deepcopy(model).double(), images.double())
        for precision in PRECISIONS:
            dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
            with torch.autocast("cpu", torch.bfloat16, enabled="autocast" in precision):
                found = _features(case, deepcopy(model).to(dtype), images.to(dtype))
            value = sqnr(found, exact)
            measured(f"sqnr/{host}/{name}/{precision}", round(value, 1))
            assert value > (80 if precision == "fp32" else 10), (name, precision, value)
            tried("precisions")
        if name != "unpruned":
            find_handle(model).remove()


def _features(case: Any, model: Any, images: Tensor) -> Tensor:
    batch = {"pixel_values": images} if isinstance(case.batch(0), dict) else (images, None)
    with torch.no_grad():
        out = case.encode(model, batch)
    return out if isinstance(out, Tensor) else out.pooler_output


def test_the_tiny_model_is_as_these_tests_think() -> None:
    assert TINY["vision_cfg"]["image_size"] == 64 and TINY["embed_dim"] == 32
