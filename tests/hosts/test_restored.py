"""Whoever reads the tokens counts a merged one as often as it stands for a patch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import elip_plugin
from elip_plugin.errors import ConfigError
from elip_plugin.patching.swap import find_patched

pytestmark = pytest.mark.newest

MILD: dict[str, Any] = {
    "reducer": "tome",
    "stages": [{"block": 0, "lookahead": 1, "keep": 0.8}],
    "reference_depth": 12,
}
"""Removes 23 of 64 patches, less than there are equal ones beside each other."""


PRESETS = {"tome": "half", "ward": "embed"}


def quarters(side: int) -> Tensor:
    """Pictures of which the patches of each quarter are equal."""
    colors = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    return colors.repeat_interleave(side // 2, 2).repeat_interleave(side // 2, 3).double()


def _hf(name: str, config: str) -> Any:
    hf = pytest.importorskip("transformers", minversion="4.57")
    from hosts.transformers.tiny import NO_DROPOUT, VISION

    drop = {} if config.startswith("Siglip") else NO_DROPOUT
    return getattr(hf, name)(getattr(hf, config)(**VISION, **drop))


def _timm(pool: str) -> Any:
    timm = pytest.importorskip("timm", minversion="1.0")
    options = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "num_heads": 4, "num_classes": 5}
    return timm.create_model("vit_tiny_patch16_224", global_pool=pool, class_token=True, **options)


def _open_clip(**vision: Any) -> Any:
    from conftest import TINY

    open_clip = pytest.importorskip("open_clip")
    return open_clip.CLIP(**{**TINY, "vision_cfg": {**TINY["vision_cfg"], **vision}})


def _state(model: Any, images: Tensor) -> Tensor:
    tokens: Tensor = model(pixel_values=images).last_hidden_state
    return tokens


READERS: dict[str, tuple[Callable[[], Any], Callable[[Any, Tensor], Tensor]]] = {
    "class token": (
        lambda: _hf("Dinov2Model", "Dinov2Config"), lambda m, x: m(x).pooler_output,
    ),
    "mean of all": (
        lambda: _hf("Dinov2Model", "Dinov2Config"), lambda m, x: _state(m, x).mean(dim=1),
    ),
    "mean of the patches": (
        lambda: _hf("Dinov2Model", "Dinov2Config"), lambda m, x: _state(m, x)[:, 1:].mean(dim=1),
    ),
    "each patch": (lambda: _hf("Dinov2Model", "Dinov2Config"), _state),
    "a head beside the class token": (
        lambda: _hf("Dinov2ForImageClassification", "Dinov2Config"), lambda m, x: m(x).logits,
    ),
    "attention pooling of SigLIP": (
        lambda: _hf("SiglipVisionModel", "SiglipVisionConfig"), lambda m, x: m(x).pooler_output,
    ),
    "timm, class token": (lambda: _timm("token"), lambda m, x: m(x)),
    "timm, mean": (lambda: _timm("avg"), lambda m, x: m(x)),
    "timm, mean and largest": (lambda: _timm("avgmax"), lambda m, x: m(x)),
    "timm, attention pooling": (lambda: _timm("map"), lambda m, x: m(x)),
    "OpenCLIP, class token": (_open_clip, lambda m, x: m.encode_image(x)),
    "OpenCLIP, mean": (lambda: _open_clip(pool_type="avg"), lambda m, x: m.encode_image(x)),
    "OpenCLIP, attention pooling": (
        lambda: _open_clip(attentional_pool=True, attn_pooler_queries=4, attn_pooler_heads=2),
        lambda m, x: m.encode_image(x),
    ),
}  # fmt: skip


def made(reader: str) -> Any:
    """A model without positions, so that equal patches are equal tokens."""
    torch.manual_seed(0)
    model = READERS[reader][0]().double().train()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "position" in name or "pos_embed" in name:
                weight.zero_()
    return model


@pytest.mark.parametrize("reducer", ["tome", "ward"])
@pytest.mark.parametrize("reader", READERS)
def test_merging_equal_tokens_changes_nothing(reader: str, reducer: str) -> None:
    model, read, images = made(reader), READERS[reader][1], quarters(64)
    with torch.no_grad():
        expected = read(model, images)
        handle = elip_plugin.apply(model, {**MILD, "reducer": reducer})
        with handle.trace() as trace:
            found = read(model, images)
    assert handle.plan.tokens[-1] < 50 and trace.sizes is not None
    assert trace.sizes.max() > 1 and (trace.sizes.sum(dim=1) == 64).all()
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_each_patch_has_the_token_that_it_is_in() -> None:
    """Of every reducer that merges, as a trace says."""
    model = made("each patch")
    images = torch.randn(2, 3, 64, 64).double()
    for reducer in ("tome", "ward", "elip", "evit", "unique"):
        config = {"reducer": reducer, "preset": PRESETS.get(reducer, "fast")}
        handle = elip_plugin.apply(model, {**config, "text_weight": 0})
        last = next(m for m in reversed(list(find_patched(model))) if hasattr(m, "elip_calling"))
        left: list[Tensor] = []
        hook = last._modules["11"].register_forward_hook(partial(_note, left))
        with torch.no_grad(), handle.trace() as trace:
            tokens = _state(model, images)
        assert tokens.shape == (2, 65, 48)
        assert torch.equal(tokens, model.layernorm(trace_of(trace, left[-1])))
        hook.remove()
        handle.remove()


def _note(left: list[Tensor], module: Any, args: Any, out: Any) -> None:
    left.append(out[0] if isinstance(out, tuple) else out)


def trace_of(trace: Any, tokens: Tensor) -> Tensor:
    return torch.cat([tokens[:, :1], trace.unmerge(tokens)], dim=1)


@pytest.mark.parametrize("restore", [True, False])
def test_the_configuration_decides(restore: bool) -> None:
    model = made("OpenCLIP, mean")
    images = torch.randn(2, 3, 64, 64).double()
    elip_plugin.apply(model, {"preset": "half", "restore": restore})
    lengths: list[int] = []
    model.visual.ln_post.register_forward_hook(lambda _, args, out: lengths.append(out.shape[1]))
    model.encode_image(images).sum().backward()
    assert (lengths == [65]) == restore


def test_what_is_dropped_cannot_be_given_back() -> None:
    for config in ({"reducer": "random"}, {"preset": "fast", "merge": False}):
        with pytest.raises(ConfigError, match="leave restore out"):
            elip_plugin.ElipConfig.from_mapping({**config, "text_weight": 0, "restore": True})
    model = made("mean of the patches")
    elip_plugin.apply(model, {"reducer": "random"})
    assert _state(model, quarters(64)).shape[1] < 65
