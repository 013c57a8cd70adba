"""Slices by folder, size and how busy a picture is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from elip_plugin.check.slices import FEWEST, Slice, look, slices
from elip_plugin.pictures import Item


def items(folders: str) -> list[Item]:
    return [Item(f"{folder}/{i}.png", Path("x"), 1, 1) for i, folder in enumerate(folders)]


def by_name(made: list[Slice]) -> dict[str, list[int]]:
    return {f"{each.kind} {each.name}": each.places.tolist() for each in made}


def test_text_and_noise_are_busy() -> None:
    plain, text = (Image.new("RGB", (400, 300), "white") for _ in range(2))
    pen = ImageDraw.Draw(text)
    for line in range(0, 300, 12):
        pen.text((0, line), "many small words on a page " * 4, "black")
    noise = Image.effect_noise((400, 300), 80).convert("RGB")
    busy = [look(image)[2] for image in (plain, text, noise)]
    assert look(text)[:2] == (400, 300)
    assert busy[0] < 0.05 < 0.2 < min(busy[1:])


def test_parts() -> None:
    looks = np.zeros((30, 3), np.float32)
    looks[:, 0] = np.arange(30) + 100
    looks[:, 1] = 115  # the shorter side decides
    looks[:, 2] = np.arange(30)[::-1] / 100
    made = by_name(slices(items("a" * 12 + "b" * 17 + "c"), looks))
    assert (
        made["folder a"] == list(range(12)) and "folder c" not in made
    )  # one picture shows nothing
    assert made["size 100 to 109 px"] == list(range(10))
    assert made["busy 0.000 to 0.090 bytes per pixel"] == list(range(20, 30))
    assert all(len(places) >= FEWEST for places in made.values())


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_what_all_have_in_common_is_no_slice(value: float) -> None:
    assert slices(items("a" * 40), np.full((40, 3), value, np.float32)) == []
