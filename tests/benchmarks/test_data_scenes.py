"""Scenes: objects lie in their boxes, captions and answers are true, files are the same again."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.data import scene_files
from benchmarks.data.__main__ import app
from benchmarks.data.emojis import Emojis
from benchmarks.data.files import DataSetError
from benchmarks.data.scenes import (
    COLOURS,
    SIZES,
    Scene,
    SceneMaker,
    cell_box,
    choose_names,
    patches_in,
)

MAGENTA = (255, 0, 255)
"""The drawn emojis' colour; see conftest.py."""


@pytest.fixture(params=SIZES)
def scenes(request: pytest.FixtureRequest, drawn: Emojis) -> tuple[SceneMaker, list[Scene]]:
    maker = SceneMaker(drawn, request.param, names=18)
    return maker, [maker.make("train", number) for number in range(40)]


def test_an_object_lies_in_its_box(scenes: tuple[SceneMaker, list[Scene]]) -> None:
    maker, made = scenes
    for scene in made:
        assert scene.picture.shape == (maker.size, maker.size, 3)
        assert len(scene.things) == maker.objects
        boxed = np.zeros((maker.size, maker.size), bool)
        for i, thing in enumerate(scene.things):
            left, top, right, bottom = thing.box
            inside = (scene.picture[top:bottom, left:right] == MAGENTA).all(-1)
            assert inside.any()
            boxed[top:bottom, left:right] = True
            outer = cell_box(i, maker.objects, maker.size)
            assert outer[0] <= left < right <= outer[2] and outer[1] <= top < bottom <= outer[3]
            assert (thing.row, thing.column) == divmod(i, maker.side)
        ground = [list(colour) for colour in COLOURS.values()]
        ground += [[int(value * 0.75) for value in colour] for colour in ground]
        outside = np.unique(scene.picture[~boxed].reshape(-1, 3), axis=0).tolist()
        assert all(colour in ground for colour in outside)


def test_the_ground_has_the_colour_that_is_said(scenes: tuple[SceneMaker, list[Scene]]) -> None:
    maker, made = scenes
    seen = set()
    for scene in made:
        for i, thing in enumerate(scene.things):
            left, top, right, bottom = cell_box(i, maker.objects, maker.size)
            cell = scene.picture[top:bottom, left:right].reshape(-1, 3).astype(int)
            light = np.array(COLOURS[thing.colour])
            dark = (light * 0.75).astype(int)
            assert (cell == light).all(1).any()
            assert (cell == dark).all(1).any() == (thing.texture != "plain")
            seen.add((thing.colour, thing.texture))
    assert len(seen) == 32


def test_answers_are_true(scenes: tuple[SceneMaker, list[Scene]]) -> None:
    maker, made = scenes
    for scene in made:
        shown = Counter(thing.name for thing in scene.things)
        kinds = [question.kind for question in scene.questions]
        assert kinds == ["colour", "place", "number"] == list(maker.answers)
        for question in scene.questions:
            assert question.answer in maker.answers[question.kind]
            asked = {scene.things[i].name for i in question.objects}
            (name,) = asked
            assert name in question.question
            assert shown[name] == len(question.objects)
            thing = scene.things[question.objects[0]]
            if question.kind == "colour":
                assert question.answer == thing.colour
            elif question.kind == "place":
                assert question.answer == f"row {thing.row + 1} column {thing.column + 1}"
            else:
                assert ["one", "two", "three", "four"].index(question.answer) + 1 == shown[name]


def test_captions_are_true(scenes: tuple[SceneMaker, list[Scene]]) -> None:
    _, made = scenes
    kinds: Counter[str] = Counter()
    for scene in made:
        things = {scene.things[i].name: scene.things[i] for i in scene.mentions}
        assert len(things) == len(scene.mentions)
        first, _, rest = scene.caption.partition(" on ")
        assert rest.replace(",", " ").split()[0] in {things[first].colour, things[first].texture}
        for relation in (" left of ", " above "):
            if relation in scene.caption:
                one, other = (things[name] for name in scene.caption.split(", ")[1].split(relation))
                step = (other.row - one.row, other.column - one.column)
                assert step == ((0, 1) if relation == " left of " else (1, 0))
                kinds[relation] += 1
        if " in row " in scene.caption:
            place = scene.caption.split(" in ")[1]
            named = scene.caption.split(" in ")[0].split(", ")
            thing = things[named[1] if len(named) > 1 else first]
            assert place == f"row {thing.row + 1} column {thing.column + 1}"
            kinds["place"] += 1
    assert len(kinds) == 3 and kinds.total() == 40


def test_every_answer_occurs(drawn: Emojis) -> None:
    maker = SceneMaker(drawn, 4, names=18)
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in maker.answers}
    for number in range(300):
        for question in maker.make("train", number).questions:
            counts[question.kind][question.answer] += 1
    for kind, answers in maker.answers.items():
        assert set(counts[kind]) == set(answers)
        assert max(counts[kind].values()) < 2 * 300 / len(answers)


def test_a_scene_depends_on_seed_split_and_number(drawn: Emojis) -> None:
    def picture(seed: int, split: str, number: int) -> bytes:
        return SceneMaker(drawn, 4, names=18, seed=seed).make(split, number).picture.tobytes()

    assert picture(0, "train", 5) == picture(0, "train", 5)
    others = {picture(1, "train", 5), picture(0, "held_out", 5), picture(0, "train", 6)}
    assert len(others | {picture(0, "train", 5)}) == 4


@pytest.mark.parametrize(("objects", "patches"), [(4, 16), (9, 9), (16, 4)])
def test_each_patch_belongs_to_one_cell(objects: int, patches: int) -> None:
    size = SIZES[objects]
    found = [patches_in(cell_box(i, objects, size), size, 8) for i in range(objects)]
    assert [len(cell) for cell in found] == [patches] * objects
    assert sorted(patch for cell in found for patch in cell) == list(range((size // 8) ** 2))


def test_patches_of_a_box() -> None:
    assert patches_in((0, 0, 8, 8), 32, 8) == [0]
    assert patches_in((5, 5, 19, 11), 32, 8) == []  # no centre is inside: 4, 12, 20, ...
    assert patches_in((4, 4, 13, 13), 32, 8) == [0, 1, 4, 5]


def test_names_need_five_styles_and_to_be_told_apart(drawn: Emojis) -> None:
    assert choose_names(drawn, 18, 4, seed=0) == sorted({*drawn.captions})
    assert choose_names(drawn, 9, 4, seed=0) != choose_names(drawn, 9, 4, seed=1)
    renamed = ["flag a" if name == "thing a" else name for name in drawn.captions]
    few = Emojis(drawn.pictures, drawn.alpha, renamed, drawn.styles)
    with pytest.raises(DataSetError, match="17 names have pictures in 5 or more styles"):
        choose_names(few, 18, 4, seed=0)
    with pytest.raises(DataSetError, match="need 16 or more"):
        choose_names(drawn, 15, 16, seed=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objects": 5}, r"objects is 5, but must be one of \[4, 9, 16\]"),
        ({"objects": 9, "size": 64}, "multiple of 3, from 24 to 384"),
        ({"objects": 4, "size": 8}, "multiple of 2, from 16"),
    ],
)
def test_wrong_arguments_are_named(drawn: Emojis, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataSetError, match=message):
        SceneMaker(drawn, names=18, **arguments)


def write(out: Path, folder: Path, **more: Any) -> dict[str, Any]:
    arguments = {"names": 18, "train": 12, "held_out": 5, **more}
    return scene_files.write_scenes(out, folder, 4, **arguments)


def test_files_are_the_same_again(tmp_path: Path, folder: Path) -> None:
    made = write(tmp_path / "a", folder)
    write(tmp_path / "b", folder)
    for name in scene_files.FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    for name, digest in made["files"].items():
        assert hashlib.sha256((tmp_path / "a" / name).read_bytes()).hexdigest() == digest
    before = (tmp_path / "a" / "train.npz").stat().st_mtime_ns
    assert write(tmp_path / "a", folder) == made
    assert (tmp_path / "a" / "train.npz").stat().st_mtime_ns == before
    assert write(tmp_path / "a", folder, seed=1)["files"] != made["files"]


def test_a_split_is_read_as_it_was_made(tmp_path: Path, folder: Path, drawn: Emojis) -> None:
    write(tmp_path, folder)
    held = scene_files.read_scenes(tmp_path, "held_out")
    maker = SceneMaker(drawn, 4, names=18)
    assert len(held) == 5 and held.answers == maker.answers
    for number in range(5):
        scene, row = maker.make("held_out", number), held.rows[number]
        assert (held.pictures[number] == scene.picture).all()
        assert held.boxes[number].tolist() == [list(thing.box) for thing in scene.things]
        assert row["caption"] == scene.caption and row["mentions"] == list(scene.mentions)
        assert [q["answer"] for q in row["questions"]] == [q.answer for q in scene.questions]
        assert [o[0] for o in row["objects"]] == [thing.name for thing in scene.things]


def test_broken_folders_are_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataSetError, match=r"no complete data set \(emojis.json\)"):
        write(tmp_path / "out", tmp_path / "nothing")
    with pytest.raises(DataSetError, match="each must be 1 or more"):
        write(tmp_path / "out", folder, train=0)
    write(tmp_path / "out", folder)
    (tmp_path / "out" / "train.npz").unlink()
    with pytest.raises(DataSetError, match=r"train.npz is missing or was changed"):
        scene_files.read_scenes(tmp_path / "out", "train")


def test_the_command(tmp_path: Path, folder: Path) -> None:
    arguments = ["scenes", "--data", str(folder), "--train", "3", "--held-out", "2", "--names"]
    out = ["--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, "18", "--objects", "9", *out])
    assert result.exit_code == 0, result.output
    assert "9 objects per picture of 72 x 72 pixels" in result.output
    assert json.loads((tmp_path / "out" / "scenes.json").read_text())["settings"]["objects"] == 9
    result = CliRunner().invoke(app, [*arguments, "180", *out])
    assert result.exit_code == 2 and "180 names" in result.output
