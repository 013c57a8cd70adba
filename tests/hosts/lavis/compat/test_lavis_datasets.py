"""The local data sets for LAVIS: their samples, and the faults named before training."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("lavis")
Image = pytest.importorskip("PIL.Image")

from lavis.common.registry import registry  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

from elip_plugin.errors import DataError  # noqa: E402
from elip_plugin.hosts.lavis.compat.datasets import (  # noqa: E402
    NAME,
    PairsBuilder,
    register_builder,
)

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


def test_the_builder_is_registered_once() -> None:
    register_builder()
    register_builder()
    assert registry.get_builder_class(NAME) is PairsBuilder


def test_a_name_that_is_taken_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.mapping["builder_name_mapping"], NAME, SimpleNamespace())
    with pytest.raises(KeyError, match=NAME):
        register_builder()


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


def test_each_list_finds_its_own_images(openmoji: Path) -> None:
    draw(openmoji / "more" / "images" / "0.png", shade=255)
    more = save(openmoji / "more" / "a.json", [{"image": "images/0.png", "caption": "white"}])
    made = built(splits(["set/train.json", more], more))
    assert len(made["train"]) == 4 and made["train"][3]["text_input"] == "white"
    assert made["train"][3]["image"].min() > 1 > made["train"][0]["image"].min()
    assert made["test"][0]["image"].min() > 1
    assert built(splits(test=more, images="set"))["test"][0]["image"].min() < 1


def test_all_faults_are_named_at_once(openmoji: Path) -> None:
    (openmoji / "set" / "images" / "1.png").unlink()
    rows: list[Any] = json.loads((openmoji / "set" / "train.json").read_text())
    rows += [{"image": "images/2.png"}, {"caption": "a"}, "x", {"image": "", "caption": ["a"]}]
    save(openmoji / "set" / "train.json", rows)
    (openmoji / "text.json").write_text("{]")
    save(openmoji / "map.json", {"a": 1})
    save(openmoji / "empty.json", [])
    lists = ["set/train.json", "none.json", "text.json", "map.json", "empty.json"]
    found = faults(splits(lists, save(openmoji / "test.json", [{"caption": []}])))
    here = str(openmoji)
    expected = [
        f'{here}/set/train.json: 3 of 7 entries have no "image" (a path): 4, 5, 6',
        f'{here}/set/train.json: 3 of 7 entries have no "caption" (a string): 3, 5, 6',
        f"{here}/set/train.json: 1 of 3 images in {here}/set are missing: images/1.png",
        f"{here}/none.json cannot be read (No such file or directory)",
        f"{here}/text.json is not JSON (",
        f"{here}/map.json holds no list of pairs",
        f"{here}/empty.json holds no list of pairs",
        f'{here}/test.json: 1 of 1 entries have no "image" (a path): 0',
        f'{here}/test.json: 1 of 1 entries have no "caption" (a string or a list of strings): 0',
    ]
    assert found.startswith(f"datasets.elip_pairs: {len(expected)} faults\n")
    for line, fault in zip(found.splitlines()[1:], expected, strict=True):
        assert line.split(". ", 1)[1].startswith(fault)


def test_many_missing_images_are_counted(openmoji: Path) -> None:
    rows = [{"image": f"{i}.png", "caption": "a"} for i in (9, 8, 7, 6, 5, 1)]
    found = faults(splits(save(openmoji / "a.json", rows), images="set/images"))
    missing = "missing: 5.png, 6.png, 7.png and 2 more"
    assert found == (
        f"datasets.elip_pairs: {openmoji}/a.json: 5 of 6 images in {openmoji}/set/images are "
        f"{missing}"
    )


@pytest.mark.parametrize(
    ("build_info", "fault"),
    [
        (None, "no annotation file is given: set build_info.annotations.train.storage"),
        ({"annotations": {"trian": {"storage": "a"}}}, "annotations.trian must be {storage: FILE"),
        ({"annotations": {"train": {"storag": "a"}}}, "annotations.train must be {storage: FILE"),
        ({"annotations": {"test": {"storage": ["a", "b"]}}}, "annotations.test must be {storage"),
        (
            {"annotations": {"train": None}},
            "a list of files), val and test; got None",
        ),
    ],
)
def test_slips_in_the_config(build_info: Any, fault: str) -> None:
    assert fault in faults(build_info)


def test_an_empty_caption_is_fine(openmoji: Path) -> None:
    info = splits(save(openmoji / "set" / "a.json", [{"image": "images/0.png", "caption": "!"}]))
    train = built(info)["train"]
    assert train[0]["text_input"] == ""
