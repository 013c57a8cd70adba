"""The text tower's share of a step, counted and timed, and what limits a step."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from entry_points import elip
from PIL import Image

from elip_plugin import create
from elip_plugin.measure.counts import count_flops
from elip_plugin.measure.parts import Parts, describe_parts, measure_parts
from elip_plugin.measure.shares import TextShare, count_text_share, describe_text_share
from elip_plugin.measure.speed import Row

TINY = "ViT-tiny"


@pytest.fixture(scope="module")
def host_model() -> Any:
    pytest.importorskip("open_clip")
    return create(TINY)


def test_shares_are_those_of_the_towers(host_model: Any) -> None:
    counted = count_text_share(create(TINY, device="meta"))
    assert counted is not None and counted == count_text_share(host_model)
    images, texts = host_model.example_batch(1)
    text = count_flops(lambda: host_model.encode_text(texts))
    image = count_flops(lambda: host_model.encode_image(images))  # unpruned in evaluation
    assert counted.share == pytest.approx(text / (text + image))
    cut = copy.deepcopy(host_model.model)
    cut.positional_embedding = torch.nn.Parameter(cut.positional_embedding[:12])
    cut.attn_mask = cut.attn_mask[:12, :12]
    shorter = count_flops(lambda: cut.encode_text(texts[:, :12]))
    assert counted.length == texts.shape[1]
    assert shorter < text and counted.text_at(12) == pytest.approx(shorter / text, rel=0.05)


NAMES = {
    "hf:openai/clip-vit-base-patch16": ("transformers", 77),
    "hf:google/siglip-base-patch16-224": ("transformers", 64),
    "clip": ("lavis", None),  # LAVIS' models tokenize in their forward
}


@pytest.mark.parametrize("name", NAMES)
def test_texts_of_every_kind_are_counted(name: str) -> None:
    host, length = NAMES[name]
    pytest.importorskip(host, minversion="4.57" if host == "transformers" else None)
    counted = count_text_share(create(name, device="meta"))
    assert counted is not None and counted.length == length
    assert 0.05 < counted.share < 0.5 and counted.attention > 0
    assert "operations and is not pruned" in describe_text_share(counted, 0.8, "")


def test_examples_without_a_text(host_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(host_model)
    monkeypatch.setattr(kind, "example_batch", lambda self, n: (torch.zeros(n, 3, 64, 64), None))
    assert count_text_share(host_model) is None
    assert "only the vision tower is counted" in elip(f"plan --model {TINY}")


def test_the_saving_that_the_text_tower_leaves() -> None:
    counted = TextShare(vision=300, text=100, attention=20, length=40)
    assert counted.share == 0.25
    assert counted.step(0.8) == pytest.approx(0.85)
    assert counted.text_at(20) == pytest.approx((80 / 2 + 20 / 4) / 100)
    text = describe_text_share(counted, 0.8, "--length")
    assert "25%" in text and "0.85" in text and "--length 20" in text
    assert "cut" not in describe_text_share(counted, 0.8, "")


def test_a_text_side_of_lavis_that_reads_images_is_not_counted() -> None:
    pytest.importorskip("lavis")
    host_model = create("elip_albef_pretrain:openmoji", device="meta")
    assert count_text_share(host_model) is None
    assert "reads the images too" in elip("plan --model elip_albef_pretrain:openmoji")


def rows(tower: float, step: float, pruned: float) -> list[Row]:
    made = (("tower", "full", tower), ("step", "full", step), ("step", "fast", pruned))
    return [Row(v, m, seconds, 1, 1, 1, 0, 0) for m, v, seconds in made]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (Parts(0.1, 0.1), "The text tower does not limit: the vision tower is 60%"),
        (Parts(0.1, 0.1, 0.2), "Neither the text tower nor the loader limits"),
        (Parts(0.7, 0.1), "The text tower limits .*no faster than 0.40 of full"),
        (Parts(0.1, 0.1, 1.5), "The loader limits: .*1.50 s .* saves nothing"),
        (Parts(0.1, 0.1, 0.9), "limits the pruned step: .* saves 10% instead of 30%"),
        (Parts(None, 0.1), "reads the image tokens, so pruning may save more"),
    ],
)
def test_what_limits_is_one_line(parts: Parts, message: str) -> None:
    shares, limit = describe_parts(rows(0.6, 1.0, 0.7), parts)
    assert "vision tower 60%" in shares
    assert re.search(message, limit), limit
    assert describe_parts(rows(0.6, 1.0, 0.7)[1:], parts) == []


def test_parts_are_measured_and_printed(host_model: Any, tmp_path: Path) -> None:
    loaded: list[int] = []
    parts = measure_parts(host_model, batch=2, rounds=1, load=lambda: loaded.append(1), workers=2)
    assert len(loaded) == 3 and parts.text and parts.optimizer > 0 and parts.workers == 2
    Image.new("RGB", (80, 60)).save(tmp_path / "a.jpg")
    out = elip(
        f"bench speed --model elip-{TINY} --batch 2 --rounds 1 --variants full,fast "
        f"--data {tmp_path} --passes tower,step"
    )
    assert "text tower" in out and "loader limits" in out
