"""The published research code's outputs and gradients, on the hosts' own classes."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import Golden

from elip_plugin import apply


def assert_gradients(model: torch.nn.Module, expected: dict[str, torch.Tensor]) -> None:
    parameters = dict(model.named_parameters())
    gradients = {k.removeprefix("grad."): v for k, v in expected.items() if k.startswith("grad.")}
    assert gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(parameters[name].grad, gradient, rtol=0, atol=1e-10)


def assert_exact(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


def test_clip() -> None:
    open_clip = pytest.importorskip("open_clip")
    golden = Golden("clip")
    inputs, expected = golden.part("in."), golden.part("out.")
    model = open_clip.CLIP(**golden.meta["cfg"], output_dict=True).double()
    model.load_state_dict(golden.part("state."))
    handle = apply(model, golden.config())

    out = model.train()(inputs["image"], inputs["text"])
    logits = out["logit_scale"] * out["image_features"] @ out["text_features"].T
    labels = torch.arange(len(logits))
    loss = F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)
    loss.backward()

    assert_exact(out["image_features"], expected["image_features"])
    assert_exact(out["text_features"], expected["text_features"])
    assert_exact(loss, expected["loss"])
    assert_gradients(model, expected)
    with handle.disabled():
        unpruned = model(inputs["image"], inputs["text"])["image_features"]
    assert_exact(unpruned, expected["unpruned_image_features"])


@pytest.mark.parametrize("name", ["albef_vit", "blip_vit"])
def test_lavis_tower(name: str) -> None:
    vit = pytest.importorskip("lavis.models.vit")
    golden = Golden(name)
    meta, inputs, expected = golden.meta, golden.part("in."), golden.part("out.")
    tower = vit.VisionTransformer(
        img_size=tuple(meta["image_size"]),
        patch_size=meta["patch_size"],
        embed_dim=meta["width"],
        depth=meta["depth"],
        num_heads=meta["heads"],
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
    ).double()
    tower.load_state_dict(golden.part("state."))
    handle = apply(tower, golden.config())

    with handle.guide(inputs["text"]):
        tokens = tower.train()(inputs["image"])
    tokens.square().mean().backward()

    assert_exact(tokens, expected["tokens"])
    assert_gradients(tower, expected)
    with handle.disabled():
        assert_exact(tower(inputs["image"]), expected["unpruned"])
