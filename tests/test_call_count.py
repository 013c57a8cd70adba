"""How many Python functions of this package a training forward calls: small models feel it."""

from __future__ import annotations

import collections
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import elip_plugin

PACKAGE = str(Path(elip_plugin.__file__).parent)


def own_calls(run: Callable[[], Any]) -> collections.Counter[str]:
    """Calls of functions whose file is in the package; the second run, so nothing is made first."""
    counts: collections.Counter[str] = collections.Counter()

    def profile(frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE):
            counts[f"{code.co_filename.removeprefix(PACKAGE)}:{code.co_name}"] += 1

    run()
    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(None)
    return counts


@pytest.mark.parametrize(
    ("config", "most"),
    [("paper", 50), ({"preset": "fast", "warmup": 0.5}, 51)],
    ids=["paper", "warmup"],
)
def test_open_clip(config: Any, most: int) -> None:
    open_clip = pytest.importorskip("open_clip")
    model: Any = open_clip.create_model("ViT-tiny", output_dict=True).train()
    handle = elip_plugin.apply(model, config)
    images, texts = torch.randn(4, 3, 64, 64), torch.randint(1, 49000, (4, 24))
    handle.update_progress(1, total_steps=4)  # a level in between
    counts = own_calls(lambda: model(images, texts))
    assert 0 < sum(counts.values()) <= most, counts


@pytest.mark.parametrize(("family", "most"), [("blip_vqa", 113), ("instructblip", 113)])
def test_blip_of_transformers(family: str, most: int) -> None:
    """By default: `similarity`, of two cross-attentions."""
    pytest.importorskip("transformers", minversion="4.57")
    from hosts.transformers.tiny import inputs, make

    model: Any = make(family).train()
    elip_plugin.apply(model, "paper")
    batch = inputs(family=family)
    counts = own_calls(lambda: model(**batch))
    assert 0 < sum(counts.values()) <= most, counts
