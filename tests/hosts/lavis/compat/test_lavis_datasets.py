"""The local data sets for LAVIS: their samples, and the faults named before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lavis")
Image = pytest.importorskip("PIL.Image")

from omegaconf import OmegaConf  # noqa: E402

from elip_plugin.errors import DataError  # noqa: E402
from elip_plugin.hosts.lavis.compat.datasets import NAME, PairsBuilder  # noqa: E402

SMALL = {
    "vis_processor": {
        "train": {"name": "blip_image_train", "image_size": 32},
        "eval": {"name": "blip_image_eval", "image_size": 32},
    }
}


def save(path: Path, rows: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


def draw(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Noise, so that a file cut in half has a header and not all pixels.
    Image.effect_noise((64, 48), 99).point(lambda value: max(value, shade)).save(path)


def built(build_info: Any) -> Any:
    """What LAVIS makes of a project: our defaults, with the project's section over them."""
    defaults = OmegaConf.load(PairsBuilder.default_config_path()).datasets[NAME]
    section = OmegaConf.merge(defaults, SMALL, {"build_info": build_info})
    return PairsBuilder(section).build_datasets()


def splits(train: Any = None, test: Any = None, images: Any = None) -> dict[str, Any]:
    lists = {"train": train, "test": test}
    info: dict[str, Any] = {
        "annotations": {split: {"storage": at} for split, at in lists.items() if at is not None}
    }
    return {**info, "images": {"storage": images}} if images else info


@pytest.fixture
def openmoji(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files as `python -m examples.openmoji` writes them, in the working directory."""
    for i in range(4):
        draw(tmp_path / "set" / "images" / f"{i}.png")
    rows = [{"image": f"images/{i}.png", "caption": f"an emoji of É: {i}"} for i in range(4)]
    save(tmp_path / "set" / "train.json", rows[:3])
    save(tmp_path / "set" / "held_out.json", rows[3:])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def faults(build_info: Any) -> str:
    with pytest.raises(DataError) as caught:
        built(build_info)
    return str(caught.value)


def test_samples_of_openmoji(openmoji: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = built(splits("set/train.json", "set/held_out.json"))
    monkeypatch.chdir("/")  # only the start looks at the working directory
    assert {split: len(data) for split, data in made.items()} == {"train": 3, "test": 1}
    sample = made["train"][1]
    assert sample["image"].shape == (3, 32, 32)
    assert sample["text_input"] == "an emoji of é 1"
    assert sample.keys() == {"image", "text_input"}
    test = made["test"]
    assert test.text == ["an emoji of é 3"]
    assert (test.txt2img, test.img2txt) == ({0: 0}, {0: [0]})
    assert test[0]["image"].shape == (3, 32, 32)
    assert test[0]["index"] == 0


def test_images_with_several_captions(openmoji: Path) -> None:
    rows = [
        {"image": "images/0.png", "caption": ["one", "!"]},
        {"image": "images/1.png", "caption": "lone"},
    ]
    info = splits(test=save(openmoji / "set" / "test.json", rows))
    test = built(info)["test"]
    assert test.text == ["one", "", "lone"]
    assert test.img2txt == {0: [0, 1], 1: [2]}


def test_lists_of_several_folders(openmoji: Path) -> None:
    draw(openmoji / "more" / "images" / "0.png", shade=255)
    more = save(openmoji / "more" / "a.json", [{"image": "images/0.png", "caption": "white"}])
    made = built(splits("set/train.json", more))
    assert len(made["train"]) == 3 and made["train"][0]["image"].min() < 1
    assert made["test"][0]["image"].min() > 1
    assert built(splits(test=more, images="set"))["test"][0]["image"].min() < 1
    rows = [{"image": "more/images/0.png", "caption": "white"}]
    both = ["set/train.json", save(openmoji / "b.json", rows)]
    assert "of 4 pairs to train with, 1 images are not in" in faults(splits(both))
    save(openmoji / "b.json", [{"image": str(openmoji / "more/images/0.png"), "caption": "white"}])
    assert built(splits(both))["train"][3]["text_input"] == "white"


def test_missing_images_are_counted_before_training(openmoji: Path) -> None:
    rows = [{"image": f"{i}.png", "caption": "a"} for i in (10, 9, 8, 7, 6, 5, 4, 1)]
    found = faults(splits(save(openmoji / "a.json", rows), images="set/images"))
    assert found == (
        "datasets.elip_pairs: of 8 pairs to train with, 7 images are not in "
        f"{openmoji}/set/images: ['10.png', '4.png', '5.png', '6.png', '7.png', '8.png', ...]"
    )


@pytest.mark.parametrize("rows", [[{"caption": "a"}], [{"image": "images/0.png"}], ["x"], [3]])
@pytest.mark.parametrize("split", ["train", "test"])
def test_lists_of_something_else_are_named(openmoji: Path, rows: Any, split: str) -> None:
    path = save(openmoji / "set" / "a.json", rows)
    assert f"{path} must be JSON lists, such as" in faults(splits(**{split: path}))


def test_files_that_cannot_be_read_are_named(openmoji: Path) -> None:
    assert "none.json must be JSON lists" in faults(splits("none.json"))
    for text in ("{]", "[" * 100_000):
        (openmoji / "text.json").write_text(text)
        assert "text.json must be JSON lists" in faults(splits("text.json"))
    info = {"annotations": {"train": {"storag": "a"}}}
    assert "annotations.train has no storage" in faults(info)


def test_an_empty_caption_is_fine(openmoji: Path) -> None:
    info = splits(save(openmoji / "set" / "a.json", [{"image": "images/0.png", "caption": "!"}]))
    train = built(info)["train"]
    assert train[0]["text_input"] == ""
