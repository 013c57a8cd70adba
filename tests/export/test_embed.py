"""The preset `embed`: weights that exist, pruned where they embed pictures."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import elip_plugin

IMAGES = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def made(name: str, weights: Any) -> Any:
    model = pytest.importorskip("open_clip").create_model(name)
    model.load_state_dict(weights)
    return model


def test_the_name_prunes_in_evaluation() -> None:
    open_clip = pytest.importorskip("open_clip")
    base = open_clip.create_model("ViT-tiny").eval()
    weights = base.state_dict()
    embed = made("elip-embed-ViT-tiny", weights)
    with torch.no_grad():
        full, pruned = base.encode_image(IMAGES), embed.eval().encode_image(IMAGES)
        assert (pruned - full).abs().max() > 1e-2
        elip_plugin.find_handle(embed).remove()
        assert torch.equal(embed.encode_image(IMAGES), full)
        elip_plugin.apply(embed, {"reducer": "ward", "eval_mode": "image"})
        assert torch.equal(pruned, embed.encode_image(IMAGES))


def test_every_model_that_can_be_pruned_by_half_has_the_name_and_the_tags() -> None:
    open_clip = pytest.importorskip("open_clip")
    names = elip_plugin.list_models("open_clip")
    bases = {name.removeprefix("elip-half-") for name in names if name.startswith("elip-half-")}
    assert len(bases) >= 100 or open_clip.__version__ < "3"
    assert bases == {n.removeprefix("elip-embed-") for n in names if n.startswith("elip-embed-")}
    for base in ("ViT-B-32", "ViT-L-14"):
        tags = open_clip.list_pretrained_tags_by_model(base)
        assert tags and open_clip.list_pretrained_tags_by_model(f"elip-embed-{base}") == tags


def test_one_line_in_transformers() -> None:
    pytest.importorskip("transformers", minversion="4.57")
    from hosts.transformers.tiny import make

    from elip_plugin.hosts.transformers.guide import feature_of

    model = make("clip").eval()

    def encode() -> torch.Tensor:
        with torch.no_grad():
            return feature_of(model.get_image_features(pixel_values=IMAGES))

    full = encode()
    handle = elip_plugin.apply(model, "embed")
    assert (encode() - full).abs().max() > 1e-2
    handle.remove()
    assert torch.equal(encode(), full)
    elip_plugin.apply(model, {"preset": "half", "eval_mode": "full"})
    assert torch.equal(encode(), full)
