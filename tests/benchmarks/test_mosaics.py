"""Mosaics of photographs: what they show, what is asked, and how a tower learns their names."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("scipy")

from benchmarks.data.files import DataSetError
from benchmarks.data.scene_files import Scenes
from benchmarks.data.scenes import COLOURS, Scene
from benchmarks.photos import mosaics
from benchmarks.photos.mosaics import FRAME, MosaicMaker, write_mosaics
from benchmarks.vqa import scenes
from benchmarks.vqa.naming import learn_names
from benchmarks.vqa.recipe import KINDS, PHOTOGRAPHS, VqaRecipe

EACH, NAMES = 12, 9
RECIPE = VqaRecipe(source=PHOTOGRAPHS, objects=4, names=NAMES, width=8, batch=8)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mosaics, "PHOTOGRAPHS", EACH)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def maker(photographs: Path, cache: Path) -> MosaicMaker:
    return MosaicMaker(photographs, cache, 4, NAMES)


def cells(scene: Scene, cell: int) -> list[np.ndarray]:
    places = [(thing.row * cell, thing.column * cell) for thing in scene.things]
    return [scene.picture[y : y + cell, x : x + cell] for y, x in places]


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_each_cell_has_a_photograph_of_its_name_in_its_frame(
    maker: MosaicMaker, split: str
) -> None:
    levels = set()
    for number in range(20):
        scene = maker.make(split, number)
        assert scene.picture.shape == (64, 64, 3) and len({*scene.things}) == 4
        for thing, picture in zip(scene.things, cells(scene, 32), strict=True):
            inner = picture[FRAME:-FRAME, FRAME:-FRAME]
            frame = picture.astype(int).sum((0, 1)) - inner.astype(int).sum((0, 1))
            assert (frame == (32 * 32 - 28 * 28) * np.array(COLOURS[thing.colour])).all()
            place = int(thing.name.removeprefix("thing "))
            if place == 1:  # one of its photographs is grey
                continue
            level = inner[..., 0].mean() - 20 * place
            assert -3 < level < EACH + 2
            levels.add(round(level))
            # The object's box of 8 to 40 of 64 pixels, in the 28 that the frame leaves.
            x, y = 32 * thing.column + FRAME, 32 * thing.row + FRAME
            assert thing.box == (x + 3, y + 3, x + 18, y + 18)
    # The photographs to train on have levels of their own; those to validate on are at 0.
    assert (len(levels) > 6) == (split == "train")


def test_answers_are_true(maker: MosaicMaker) -> None:
    asked = set()
    for number in range(60):
        scene = maker.make("train", number)
        colour, place, neighbour = scene.questions
        (one,) = (scene.things[i] for i in colour.objects)
        assert one.name in colour.question and one.colour == colour.answer
        (one,) = (scene.things[i] for i in place.objects)
        assert one.name in place.question
        assert place.answer == f"row {one.row + 1} column {one.column + 1}"
        one, other = (scene.things[i] for i in neighbour.objects)
        assert neighbour.answer == other.name and neighbour.question.endswith(f"{one.name}?")
        (relation,) = (
            r for r in ("left of", "right of", "above", "below") if r in neighbour.question
        )
        step = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}[relation]
        assert (other.row - one.row, other.column - one.column) == step
        asked.add(relation)
        for question in scene.questions:
            assert question.answer in maker.answers[question.kind]
    assert len(asked) == 4
    assert tuple(maker.answers) == KINDS[PHOTOGRAPHS]


def test_a_mosaic_is_the_same_again(photographs: Path, cache: Path) -> None:
    def made(split: str, number: int, seed: int = 0) -> bytes:
        return MosaicMaker(photographs, cache, 4, NAMES, seed).make(split, number).picture.tobytes()

    assert made("train", 3) == made("train", 3)
    assert len({made("train", 3), made("train", 4), made("held_out", 3), made("train", 3, 1)}) == 4


@pytest.mark.parametrize("sizes", [(16, 16), (5, 9), (9, 8), (4, 11)])
def test_wrong_sizes_are_named(photographs: Path, cache: Path, sizes: tuple[int, int]) -> None:
    with pytest.raises(DataSetError, match="objects must be 4 or 9, and names from"):
        MosaicMaker(photographs, cache, *sizes)


def test_questions_know_their_photograph_and_the_box_in_it(
    photographs: Path, cache: Path, tmp_path: Path
) -> None:
    folder = scenes.folder_of(RECIPE, tmp_path)
    made = write_mosaics(folder, photographs, cache, 4, names=NAMES, train=12, held_out=6)
    assert write_mosaics(folder, photographs, cache, 4, names=NAMES, train=12, held_out=6) == made
    vocabulary = scenes.make(RECIPE, tmp_path, photographs)
    assert {"thing", "above", "frame"} & {*vocabulary.read_text().split()} == {"thing", "above"}
    for one in scenes.read(RECIPE, tmp_path, "held_out", kinds="colour,place").asked:
        assert len(one.patches) == 16 and one.inner < one.patches
        assert len(one.inner) == 1  # pixels 5 to 19 of 32, and patches count by their centers


class Tower(nn.Module):
    """A class token, and the mean color of each patch."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 8, 8)

    def forward_features(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        return torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1)


def test_a_tower_learns_to_name_what_is_in_each_cell() -> None:
    """Black beside white, and white beside black: only the place says which is asked."""
    pictures = np.zeros((40, 64, 64, 3), np.uint8)
    rows = []
    for i, picture in enumerate(pictures):
        names = ["dark", "light"] if i % 2 else ["light", "dark"]
        for place in range(4):
            y, x = divmod(place, 2)
            shade = 255 * (names[place % 2] == "light")
            picture[32 * y : 32 * y + 32, 32 * x : 32 * x + 32] = shade
        rows.append({"objects": [[names[place % 2], "plain", "red"] for place in range(4)]})
    made = Scenes(pictures, np.zeros((40, 4, 4), np.int16), rows, {})

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.visual_encoder = Tower()

    def apart(steps: int) -> float:
        model = Model()
        recipe = VqaRecipe(source=PHOTOGRAPHS, objects=4, width=8, batch=8, naming=steps)
        learn_names(model, recipe, made, seed=0)
        images = torch.from_numpy(pictures[:1]).permute(0, 3, 1, 2).float() / 127.5 - 1
        tokens = model.visual_encoder.forward_features(images)[0, 1:].unflatten(0, (8, 8))
        return float((tokens[:, :4].mean((0, 1)) - tokens[:, 4:].mean((0, 1))).norm().detach())

    assert apart(0) == apart(0) < 0.8 * apart(60)


def test_photographs_are_changed_inside_their_frames_while_names_are_learned() -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (1, 64, 64, 3), np.uint8)
    rows = [{"objects": [[f"class {place}", "plain", "red"] for place in range(4)]}]
    made = Scenes(pictures, np.zeros((1, 4, 4), np.int16), rows, {})
    seen: list[torch.Tensor] = []

    class Watched(Tower):
        def forward_features(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images)
            return super().forward_features(images)

    def shown(source: str, seed: int = 0) -> torch.Tensor:
        model = nn.Module()
        model.visual_encoder = Watched()
        learn_names(
            model, VqaRecipe(source=source, objects=4, width=8, batch=8, naming=1), made, seed
        )
        return seen.pop()

    whole = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    changed = shown(PHOTOGRAPHS)
    inside = torch.zeros(64, 64, dtype=torch.bool)
    for top in (2, 34):
        for left in (2, 34):
            inside[top : top + 28, left : left + 28] = True
            cell = (..., slice(top, top + 28), slice(left, left + 28))
            assert len({one.numpy().tobytes() for one in changed[cell]}) > 4
            assert set(changed[cell].unique().tolist()) <= set(whole[cell].unique().tolist())
    assert torch.equal(changed[..., ~inside], whole[..., ~inside].expand(8, -1, -1))
    assert torch.equal(changed, shown(PHOTOGRAPHS))
    assert not torch.equal(changed, shown(PHOTOGRAPHS, seed=1))
    assert torch.equal(shown("emojis"), whole.expand(8, -1, -1, -1))


def test_what_lavis_continues_from_keeps_the_tower_that_learned_names(
    photographs: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lavis")
    from benchmarks.vqa import grid, training

    monkeypatch.setitem(grid.BASE_STEPS, PHOTOGRAPHS, 3)
    sizes = {"objects": 4, "names": NAMES, "width": 32, "batch": 4, "naming": 2}
    recipe = grid.recipe_of("continued", PHOTOGRAPHS, **sizes)
    write_mosaics(
        scenes.folder_of(recipe, tmp_path), photographs, cache, 4, names=NAMES, train=12, held_out=6
    )
    vocabulary = scenes.make(recipe, tmp_path, photographs)
    grid.run_row({"recipe": asdict(recipe), "seed": 0, "base": True}, tmp_path, photographs)
    kept = torch.load(grid.weights_of(recipe, tmp_path, 0), weights_only=True)
    named = training.build(recipe, vocabulary, seed=0)
    before = {name: weight.clone() for name, weight in named.state_dict().items()}
    train = scenes.read(recipe, tmp_path, "train").scenes
    learn_names(named, grid.base_of(recipe), train, seed=0)
    tower = [name for name in kept if name.startswith("visual_encoder.")]
    assert all(torch.equal(kept[name], named.state_dict()[name]) for name in tower)
    assert not all(torch.equal(kept[name], before[name]) for name in tower)
    others = [name for name in kept if name not in tower]
    assert not all(torch.equal(kept[name], before[name]) for name in others)
