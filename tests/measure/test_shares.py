"""The text tower's share of a step, counted and timed, and what limits a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from entry_points import elip

from elip_plugin import create
from elip_plugin.measure.counts import count_flops
from elip_plugin.measure.shares import Operations, count_operations

TINY = "ViT-tiny"


@pytest.fixture(scope="module")
def host_model() -> Any:
    pytest.importorskip("open_clip")
    return create(TINY)


def test_shares_are_those_of_the_towers(host_model: Any) -> None:
    counted = count_operations(create(TINY, device="meta"))
    assert counted == count_operations(host_model)
    images, texts = host_model.example_batch(1)
    text = count_flops(lambda: host_model.encode_text(texts))
    image = count_flops(lambda: host_model.encode_image(images))  # unpruned in evaluation
    assert counted.share == pytest.approx(text / (text + image))
    assert f"with the text tower, {counted.share:.0%} of the unpruned" in elip(
        f"plan --model {TINY}"
    )


def are_counted(name: str) -> None:
    assert 0.003 < count_operations(create(name, device="meta")).share < 0.5


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_texts_of_transformers_are_counted(family: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers", minversion="4.57")
    from hosts.transformers.tiny import save

    are_counted(f"hf:{save(family, tmp_path)}")


def test_texts_of_lavis_are_counted() -> None:
    pytest.importorskip("lavis")
    are_counted("clip")  # LAVIS' models tokenize in their forward


def test_examples_without_a_text(host_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(host_model)
    monkeypatch.setattr(kind, "example_batch", lambda self, n: (torch.zeros(n, 3, 64, 64), None))
    assert count_operations(host_model).text == 0
    assert "this model takes no text" in elip(f"plan --model {TINY}")


def test_the_saving_that_the_text_tower_leaves() -> None:
    counted = Operations(vision=300, text=100)
    assert counted.share == 0.25
    assert counted.step(0.8) == pytest.approx(0.85)


def test_a_text_side_of_lavis_that_reads_images_is_not_counted() -> None:
    pytest.importorskip("lavis")
    host_model = create("elip_albef_pretrain:openmoji", device="meta")
    assert count_operations(host_model).text == 0
    assert "texts read the image tokens too" in elip("plan --model elip_albef_pretrain:openmoji")
