"""The study of photographs: its folder, its scores, its trainings, its command, its page."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

pytest.importorskip("scipy")
pytest.importorskip("open_clip_train")

from benchmarks import pool, results_log
from benchmarks.board import cost, training
from benchmarks.board.grid import BUDGETS, wanted
from benchmarks.board.measure import ALL
from benchmarks.board.variants import POOL, REFERENCE, TOME, VARIANTS, Variant
from benchmarks.photos import folder as tiny
from benchmarks.photos import grid, page
from benchmarks.photos.__main__ import app
from benchmarks.photos.augment import SHIFT, shift
from benchmarks.photos.boxes import MODEL, on_objects, trained_model, write_model
from benchmarks.photos.folder import FolderError, Photos, read_classes, read_train, read_validation
from benchmarks.photos.grid import read_study, run_row, weights_of
from benchmarks.photos.questions import ALL_QUESTIONS
from benchmarks.photos.recipe import RECIPES, PhotoRecipe
from benchmarks.photos.scores import TEST_PLANS, by_means, zero_shot

CLASSES, VALIDATION = 10, 2
"""Of the photographs in conftest.py."""

SMALL = PhotoRecipe(depth=6, width=32, text_depth=1, batch=4, steps=6, classes=CLASSES, photos=3)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Several threads are slower on models as small as these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(photographs: Path) -> Path:
    return photographs


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def reds(photos: Photos) -> list[int]:
    """Levels of red, in tens: JPEG moves them a little."""
    return [round(level) for level in photos.pictures[:, 0].float().mean((1, 2)).tolist()]


# -- the folder


def test_classes_have_their_first_name_in_the_order_of_their_ids(data: Path) -> None:
    classes = read_classes(data)
    assert [name for _, name in classes] == [f"thing {place}" for place in range(CLASSES)]
    assert [wnid for wnid, _ in classes] == sorted(wnid for wnid, _ in classes)


def test_photographs_are_read_in_the_order_of_their_numbers(data: Path, cache: Path) -> None:
    photos = read_train(data, cache, [2, 4], first=5, each=7)
    assert photos.pictures.shape == (14, 3, 64, 64) and photos.pictures.dtype == torch.uint8
    assert photos.own.tolist() == [2] * 7 + [4] * 7
    expected = [20 * place + number for place in (2, 4) for number in range(5, 12)]
    assert all(abs(red - level) <= 2 for red, level in zip(reds(photos), expected))
    grey = read_train(data, cache, [1], first=0, each=1)
    assert grey.pictures.unique().tolist() == [200]


def test_validation_photographs_have_the_classes_of_their_file(data: Path, cache: Path) -> None:
    photos = read_validation(data, cache)
    assert len(photos.pictures) == CLASSES * VALIDATION
    assert all(abs(red - 20 * place) <= 2 for red, place in zip(reds(photos), photos.own.tolist()))
    some = photos.of([7, 3])
    assert sorted(some.own.tolist()) == [0, 0, 1, 1]
    assert all(abs(r - (140, 60)[place]) <= 2 for r, place in zip(reds(some), some.own.tolist()))


def test_the_array_is_written_once_and_again_where_a_file_changed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, kept = tmp_path / "data", tmp_path / "kept"
    shutil.copytree(data, copy)
    first = read_train(copy, kept, [0], 0, 2)
    read: list[Path] = []
    real = tiny._picture
    monkeypatch.setattr(tiny, "_picture", lambda path, of: (read.append(path), real(path, of))[1])
    assert torch.equal(read_train(copy, kept, [0], 0, 2).pictures, first.pictures) and not read
    (changed,) = (copy / "train" / "n00000000" / "images").glob("*_1.JPEG")
    Image.new("RGB", (64, 64), (9, 9, 9)).save(changed)
    assert read_train(copy, kept, [0], 0, 2).pictures[1].unique().tolist() == [9]
    assert len(read) == 2 and len(list(kept.iterdir())) == 2  # two arrays, and no half a one


def test_a_folder_of_something_else_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=r"wnids\.txt.* Name the folder"):
        read_classes(tmp_path)
    with pytest.raises(FolderError, match="n00000003/images has 12 photographs, not 13"):
        read_train(data, tmp_path / "cache", [3], 1, 12)
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    (copy / "words.txt").write_text("n00000000\tcrane\nn00000001\tcrane\n")
    with pytest.raises(FolderError, match=r"no name for \['n00000002'"):
        read_classes(copy)
    (copy / "wnids.txt").write_text("n00000000\nn00000001\n")
    with pytest.raises(FolderError, match=r"several classes are called \['crane'\]"):
        read_classes(copy)
    (copy / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn77\n")
    (copy / "words.txt").write_text("n00000000\tcrane\nn00000001\tcrane bird\n")
    with pytest.raises(FolderError, match=r"names no class for \['val_0\.JPEG'\]"):
        read_validation(copy, tmp_path / "cache")
    Image.new("RGB", (32, 64)).save(copy / "train" / "n00000001" / "images" / "n00000001_0.JPEG")
    with pytest.raises(FolderError, match=r"n00000001_0.JPEG has \(32, 64\) pixels, not 64 x 64"):
        read_train(copy, tmp_path / "cache", [1], 0, 1)


# -- augmentation


def test_pictures_are_shifted_by_whole_pixels_and_mirrored() -> None:
    images = torch.rand(16, 3, 12, 12)
    made = shift(images, torch.Generator().manual_seed(3))
    assert torch.equal(made, shift(images, torch.Generator().manual_seed(3)))
    assert not torch.equal(made, shift(images, torch.Generator().manual_seed(4)))
    wide = torch.nn.functional.pad(images, (SHIFT,) * 4, mode="reflect")
    found = set()
    for i in range(len(images)):
        places = [
            (mirrored, down, right)
            for mirrored in (False, True)
            for down in range(2 * SHIFT + 1)
            for right in range(2 * SHIFT + 1)
            if torch.equal(
                made[i], _mirrored(wide[i, :, down : down + 12, right : right + 12], mirrored)
            )
        ]
        assert len(places) == 1
        found.add(places[0])
    assert {mirrored for mirrored, *_ in found} == {False, True} and len(found) > 10


def _mirrored(image: Tensor, mirrored: bool) -> Tensor:
    return image.flip(2) if mirrored else image


# -- scores


class _Named:
    """A model whose text embeddings are given by the first token of a class' name."""

    def __init__(self, embeddings: Tensor) -> None:
        self.embeddings, self.model = embeddings, self
        self.logit_scale = torch.tensor(2.0).log()

    def tokenize(self, texts: list[str]) -> Tensor:
        assert all(text.startswith("a photo of a thing ") for text in texts)
        return torch.tensor([int(text.rpartition(" ")[2]) for text in texts])

    def encode_text(self, tokens: Tensor, normalize: bool) -> Tensor:
        return self.embeddings[tokens]


def test_zero_shot_scores_by_hand() -> None:
    names = [f"thing {place}" for place in range(6)]
    model: Any = _Named(torch.eye(6))
    # The first picture is like its own name; the second like four others before its own; the
    # third like all others.
    pictures = torch.tensor([[9.0, 0, 0, 0, 0, 0], [5, 4, 6, 7, 8, 0], [1, 2, 3, 4, 5, 0]])
    own = torch.tensor([0, 1, 5])
    found = zero_shot(model, pictures, own, names)
    assert (found["top1"], found["top5"]) == (1 / 3, 2 / 3)
    assert found["loss"] == pytest.approx(
        torch.nn.functional.cross_entropy(2 * pictures, own).item()
    )


def test_means_of_classes_by_hand() -> None:
    shots = torch.tensor([[1.0, 0], [0.8, 0.6], [0, 1]])
    classes = torch.tensor([1, 1, 0])
    pictures = torch.tensor([[1.0, 0], [0, 1], [0.5, 0.9]])  # nearer to 1, to 0, to 0
    assert by_means(pictures, torch.tensor([1, 0, 0]), shots, classes) == 1
    assert by_means(pictures, torch.tensor([1, 1, 0]), shots, classes) == pytest.approx(2 / 3)


def test_unseen_classes_are_not_trained_and_are_scored_apart(
    data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "SHOTS", 2)
    study = read_study(data, cache, 5, 3, 0, "unseen")
    names = [f"a photo of a thing {place}" for place in range(CLASSES)]
    assert sorted(set(study.train.captions)) == names[::2]
    assert set(study.evaluation.captions) == set(names)
    model = training.build(SMALL, study.evaluation, 0)
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    model.model.train()
    found = study.evaluation.score(model, None)
    assert set(found) == {
        "top1", "top5", "loss", "unseen_top1", "unseen_top5", "unseen_means"
    }  # fmt: skip
    assert found["top5"] == found["unseen_top5"] == 1  # of five classes each
    pruned = [study.evaluation.score(model, plan) for plan in TEST_PLANS.values()]
    assert len({scores["loss"] for scores in (found, *pruned)}) == 1 + len(TEST_PLANS)
    assert study.evaluation.score(model, None) == found and model.model.training
    assert all(torch.equal(before[name], v) for name, v in model.model.state_dict().items())
    whole = read_study(data, cache, CLASSES, 3, 0, "scratch").evaluation
    assert set(whole.score(model, None)) == {"top1", "top5", "loss"}


# -- trainings


def rows_of(recipe: PhotoRecipe, *names: str, seed: int = 0) -> list[dict[str, Any]]:
    return wanted(recipe, list(names), ["steps"], [seed])


@pytest.fixture
def ticked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    ticks: list[int] = []
    monkeypatch.setattr(grid, "tick", lambda: ticks.append(1))
    return ticks


def test_equal_seeds_give_equal_trainings(data: Path, cache: Path, ticked: list[int]) -> None:
    (row,) = rows_of(SMALL, "tome")
    one, two = (run_row(row, data, cache, "cpu") for _ in range(2))
    assert one["curve"] == two["curve"] and one["scores"] == two["scores"]
    assert len(one["curve"]) == training.POINTS == len(ticked) / 2
    assert set(one["scores"]) == {ALL, *TEST_PLANS} and one["steps"] == SMALL.steps
    (other,) = rows_of(SMALL, "tome", seed=1)
    assert run_row(other, data, cache, "cpu")["curve"] != one["curve"]
    kept = torch.load(weights_of(row, cache), weights_only=True)
    study = grid.study_of(SMALL, data, cache)
    model = training.build(SMALL, study.evaluation, 5, weights_of(row, cache))
    assert study.evaluation.score(model, None) == one["scores"][ALL]
    assert weights_of(other, cache) != weights_of(row, cache) and "logit_scale" in kept


def test_continued_trainings_go_on_from_their_seeds_unpruned_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ticked: list[int]
) -> None:
    monkeypatch.setitem(RECIPES, "scratch", SMALL)
    recipe = replace(SMALL, regime="continued", first=3, learning_rate=0.0)
    (row,) = rows_of(recipe, REFERENCE, seed=2)
    made = run_row(row, data, tmp_path, "cpu")
    (base,) = rows_of(SMALL, REFERENCE, seed=2)
    assert weights_of(base, tmp_path).exists() and made["recipe"] == asdict(recipe)
    before = torch.load(weights_of(base, tmp_path), weights_only=True)
    after = torch.load(weights_of(row, tmp_path), weights_only=True)
    assert all(torch.equal(before[name], after[name]) for name in before)  # a rate of 0
    kept = weights_of(base, tmp_path).stat().st_mtime_ns
    run_row(row, data, tmp_path, "cpu")
    assert weights_of(base, tmp_path).stat().st_mtime_ns == kept


def run(variant: Variant, data: Path, cache: Path) -> dict[str, Any]:
    study = grid.study_of(SMALL, data, cache)
    return training.run(variant, SMALL, 6, study.train, study.evaluation, 3)


def test_configs_follow_one_another(data: Path, cache: Path) -> None:
    unpruned = run(Variant(""), data, cache)["curve"]
    assert run(Variant("", TOME, then=((0.0, None),)), data, cache)["curve"] == unpruned
    tome = run(Variant("", TOME), data, cache)["curve"]
    assert run(Variant("", None, then=((0.0, TOME),)), data, cache)["curve"] == tome
    later = run(Variant("", TOME, then=((0.5, POOL), (1.0, None))), data, cache)["curve"]
    assert later[:3] == tome[:3] and later[3]["loss"] != tome[3]["loss"]
    rate = run(Variant("", TOME, rate=2.0), data, cache)["curve"]
    assert rate[0]["loss"] == tome[0]["loss"] and rate[-1]["loss"] != tome[-1]["loss"]


def test_operations_of_configs_that_follow_one_another() -> None:
    counted = {
        name: cost.operations(variant, RECIPES["scratch"])
        for name, variant in {
            "pool": Variant("", POOL), "tome": Variant("", TOME), "full": Variant(""),
            "all": Variant("", POOL, then=((0.5, TOME), (0.8, None))),
        }.items()
    }  # fmt: skip
    expected = 0.5 * counted["pool"] + 0.3 * counted["tome"] + 0.2 * counted["full"]
    assert counted["all"] == pytest.approx(expected)
    variant = Variant("", POOL, then=((0.3, TOME), (0.9, None)))
    shares = [variant.elip_at(step / 10) for step in range(10)]
    assert shares == [POOL] * 3 + [TOME] * 6 + [None]
    assert variant.definition["then"] == [[0.3, TOME], [0.9, None]]
    assert not variant.is_config and VARIANTS["tome"].is_config
    assert set(VARIANTS["tome"].definition) == {"elip", "control", "small_until"}


# -- questions, the command, the page


def test_recipes_and_questions_hold() -> None:
    for regime, recipe in RECIPES.items():
        assert recipe.regime == regime and 200 % recipe.classes == 0
        assert recipe.first + recipe.photos <= 500
    base, more = RECIPES["scratch"], RECIPES["continued"]
    assert more.first == base.first + base.photos  # other photographs
    assert (base.width, base.depth, base.classes) == (more.width, more.depth, more.classes)
    for question in ALL_QUESTIONS:
        assert {question.variant, question.other} <= set(VARIANTS)
        assert {question.budget, question.other_budget} <= set(BUDGETS)
        assert {question.test, question.other_test} <= {ALL, *TEST_PLANS}
        assert set(question.regimes) <= set(RECIPES)


class _InThisProcess:
    """A pool that runs each job when it is given, so that what a test replaces is seen."""

    threads: ClassVar[list[int]] = []

    def __init__(self, jobs: int, context: Any, start: Any, given: tuple[int, Any]) -> None:
        self.threads.append(given[0])

    def submit(self, job: Any, *given: Any) -> Any:
        from concurrent.futures import Future

        future: Future[Any] = Future()
        future.set_result(job(*given))
        return future

    def shutdown(self, **_: bool) -> None:
        pass


@pytest.mark.slow
def test_the_command(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ticked: list[int]
) -> None:
    monkeypatch.setattr(pool, "ProcessPoolExecutor", _InThisProcess)
    monkeypatch.setattr(grid, "SHOTS", 2)
    monkeypatch.setitem(RECIPES, "scratch", SMALL)
    monkeypatch.setitem(RECIPES, "unseen", replace(SMALL, regime="unseen", classes=5))
    out = tmp_path / "out"
    shared = ["--data", str(data), "--cache", str(tmp_path), "--out", str(out), "--seeds", "0-1"]

    def train(*more: str) -> str:
        arguments = ["train", "--variants", "tome", "--jobs", "1", *shared, *more]
        made = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert made.exit_code == 0, made.output
        return made.output

    assert "6 trainings, 0 of them done" in train()
    assert "6 trainings, 6 of them done" in train()
    assert "4 trainings, 0 of them done" in train("--regime", "unseen", "--budgets", "steps")
    assert set(_InThisProcess.threads) == {1}  # however many there are for one job
    rows = results_log.read(out / page.LOG)
    assert len(rows) == 10
    steps = {(row["variant"], row["budget"], row["steps"]) for row in rows}
    more = cost.steps_of(VARIANTS["tome"], SMALL, "operations", SMALL.steps)
    assert steps == {(REFERENCE, "steps", 6), ("tome", "steps", 6), ("tome", "operations", more)}
    assert more > 6 and all(math.isfinite(row["scores"][ALL]["loss"]) for row in rows)
    shown = CliRunner().invoke(app, ["report", "--out", str(out)], catch_exceptions=False).output
    assert "too few seeds" in shown and "scratch" in shown and "unseen" in shown
    made = page.tables(out)
    assert set(made) == {
        "photos answers", "photos missing", "photos short",
        "photos scratch", "photos unseen", "photos classes",
    }  # fmt: skip
    looked = ["boxes", "--data", str(data), "--cache", str(tmp_path), "--out", str(out)]
    shown = CliRunner().invoke(app, looked, catch_exceptions=False).output
    assert shown.count("| equal ") == 3 and "| tome | equal operations | 2 |" in shown
    looked[:1] = ["export", str(tmp_path / "model")]
    shown = CliRunner().invoke(app, looked, catch_exceptions=False).output
    assert f"elip show --model elip-half-{MODEL}" in shown
    (row,) = made["photos short"].splitlines()[2:]
    assert row.startswith("| tome | similar tokens") and row.count(" (2) |") == 2
    assert "- scratch: tome, equal steps: seeds 2, 3, 4, 5, 6, 7\n" in made["photos missing"]
    assert "- unseen: tome, equal operations: seeds 0, 1, 2" in made["photos missing"]
    assert "| not trained yet | - | 0 of 8 |" in made["photos answers"]
    assert made["photos classes"].count("\n") == 2 + 2 and "2 of 8" in made["photos answers"]
    with (out / page.LOG).open("a") as log:
        log.write('{"cut off')
    with pytest.raises(ValueError, match="line 11: not a line of results"):
        train()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--seeds", "1-x"], "1-x"),
        (["--regime", "coca"], "coca"),
        (["--variants", "fats"], "fats"),
        (["--budgets", "epochs"], "epochs"),
        ([], "wnids.txt"),
    ],
)
def test_faults_of_the_command(arguments: list[str], named: str, tmp_path: Path) -> None:
    given = ["train", "--data", str(tmp_path), "--out", str(tmp_path / "out"), *arguments]
    made = CliRunner().invoke(app, given)
    assert made.exit_code == 2 and named in made.output


def test_less_merges_where_an_object_is(
    data: Path, cache: Path, tmp_path: Path, ticked: list[int]
) -> None:
    """On pictures that are noise in their box and plain elsewhere; means of squares know no box."""
    import open_clip

    row = wanted(SMALL, [REFERENCE], ["steps"], [0])[0]
    run_row(row, data, cache, "cpu")
    pictures = torch.full((CLASSES * VALIDATION, 3, 64, 64), 90, dtype=torch.uint8)
    box = pictures[:, :, 8:40, 8:40]
    box[:] = torch.randint(255, box.shape, dtype=torch.uint8)
    found = on_objects(row, data, cache, pictures, most=6)
    assert found["half by tome"] > 1.3 and found["quarter by pool"] == pytest.approx(1)
    assert found["half by random"] == pytest.approx(1, abs=0.25)
    model = trained_model(row, data, cache)
    write_model(model, tmp_path / "model")
    config = json.loads((tmp_path / "model" / f"{MODEL}.json").read_text())
    read = open_clip.CLIP(**config)
    read.load_state_dict(torch.load(tmp_path / "model" / "weights.pt", weights_only=True))
    names = ["a photo of a thing 3"]
    with torch.no_grad():
        given = read.eval().encode_text(model.tokenizer(names))
        assert torch.equal(given, model.model.eval().encode_text(model.tokenize(names)))
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    file = folder / "val" / "val_annotations.txt"
    whole = file.read_text()
    for boxes, fault in (
        (whole.replace("39\n", "wide\n", 1), "no box of four numbers"),
        (whole.replace("39", "63"), "no box of half of the patches or fewer"),
    ):
        file.write_text(boxes)
        with pytest.raises(FolderError, match=fault):
            on_objects(row, folder, cache, pictures, most=6)
    with pytest.raises(FileNotFoundError, match="same --cache"):
        trained_model(row, data, tmp_path)


def test_the_page_is_that_of_the_committed_results() -> None:
    """Write it anew with `python -m benchmarks.photos report --write`."""
    tables = page.tables(page.RESULTS)
    for path in page.PAGES:
        text = path.read_text()
        assert text == page.fill(text, tables)
    known = [asdict(recipe) for recipe in RECIPES.values()]
    for row in results_log.read(page.RESULTS / page.LOG):
        assert row["definition"] == VARIANTS[row["variant"]].definition
        assert row["recipe"] in known
