"""The study of questions: its variants, its measure, its files, its tables; one training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recorders import recorded_lengths

pytest.importorskip("scipy")

import elip_plugin
from benchmarks.data.scene_files import write_scenes
from benchmarks.tables import fill
from benchmarks.vqa import report, scenes
from benchmarks.vqa.recipe import TRANSFORMERS, VqaRecipe
from benchmarks.vqa.variants import PLANS, REFERENCE, VARIANTS, WARMUP
from elip_plugin import plan

RECIPE = VqaRecipe(names=18, steps=3, batch=4, width=32)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """A dozen scenes where `make` would write 22,000."""
    data = tmp_path_factory.mktemp("vqa")
    write_scenes(scenes.folder_of(RECIPE, data), folder, 9, names=18, train=12, held_out=6)
    scenes.make(RECIPE, data, folder)
    return data


def test_variants_differ_in_what_chooses_alone() -> None:
    counts = set()
    for name, variant in VARIANTS.items():
        json.dumps(variant.definition)
        scratch, continued = variant.config("scratch"), variant.config("continued")
        if name == REFERENCE:
            assert scratch is continued is None
            continue
        assert scratch is not None and continued is not None
        assert (scratch.warmup, continued.warmup) == (WARMUP, 0)
        assert scratch.eval_mode == ("text" if scratch.text_weight else "image")
        assert name.endswith(f" {variant.plan}")
        counts.add((variant.plan, scratch.stages))
    assert len(counts) == len(PLANS)


@pytest.mark.parametrize("patches", [36, 64, 81])
def test_all_variants_of_a_plan_leave_as_many_tokens(patches: int) -> None:
    left: dict[str, list[int]] = {}
    for variant in VARIANTS.values():
        config = variant.config("continued")
        if config is not None:
            made = plan(config, num_patches=patches, depth=RECIPE.depth)
            left.setdefault(variant.plan, []).append(sum(made.tokens))
    assert left.keys() == PLANS.keys()
    for totals in left.values():
        assert max(totals) <= 1.01 * min(totals)


def test_questions_know_the_patches_of_their_object(data: Path) -> None:
    questions = scenes.read(RECIPE, data, "held_out", kinds="colour,place,number")
    cell = RECIPE.size // 3
    for one in questions.asked:
        row = questions.scenes.rows[one.picture]
        (asked,) = [q for q in row["questions"] if q["question"] == one.question]
        assert len(one.patches) == 4 * len(asked["objects"])
        for patch in one.patches:
            y, x = divmod(patch, RECIPE.size // RECIPE.patch)
            place = (y * RECIPE.patch // cell) * 3 + x * RECIPE.patch // cell
            assert place in asked["objects"]
    samples = questions.samples([0, 4])
    assert samples["image"].shape == (2, 3, 72, 72)
    assert samples["text_input"] == [questions.asked[0].question, questions.asked[4].question]


def test_batches_depend_on_the_seed_alone(data: Path) -> None:
    questions = scenes.read(RECIPE, data, "train")
    runs = [[s["text_input"] for s in scenes.batches(questions, 4, 7, seed)] for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    epoch = [question for batch in runs[0][:3] for question in batch]
    assert sorted(epoch) == sorted(one.question for one in questions.asked)


def test_files_are_what_lavis_reads(data: Path, folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    from benchmarks.vqa.export import export

    export(RECIPE, data, folder, tmp_path)
    rows = json.loads((tmp_path / "held_out.json").read_text())
    questions = scenes.read(RECIPE, data, "held_out")
    assert [row["question"] for row in rows] == [one.question for one in questions.asked]
    assert {row["answer"] for row in rows} <= set(
        json.loads((tmp_path / "answers.json").read_text())
    )
    for row, one in zip(rows, questions.asked):
        with Image.open(tmp_path / row["image"]) as image:
            assert (np.asarray(image) == questions.scenes.pictures[one.picture]).all()


def test_tables_compare_by_seed(tmp_path: Path) -> None:
    def row(name: str, seed: int, right: float, lift: float = 1.0) -> dict[str, Any]:
        plan = {"right": right, "share": lift / 9, "lift": lift}
        found = {"plan": {"right": right} if name == REFERENCE else plan}
        return {
            "recipe": asdict(RECIPE), "variant": name, "definition": VARIANTS[name].definition,
            "budget": "steps", "seed": seed, "steps": 3, "operations": 0.5, "scores": found,
        }  # fmt: skip

    rows = [row(REFERENCE, s, 0.8 + 0.01 * s) for s in (0, 1)]
    rows += [row("random 0.25", s, 0.5 + 0.015 * s) for s in (0, 1)]
    rows += [row("similarity 0.25", s, 0.7 + 0.02 * s, 2.0 + s) for s in (0, 1)]
    rows.append({**row("image 0.25", 0, 0.4), "definition": {"elip": {"meant": "another thing"}}})
    (tmp_path / report.LOG).write_text("".join(json.dumps(r) + "\n" for r in rows))
    (table,) = report.tables(tmp_path).values()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    by_name = {cells[0]: dict(zip(lines[0], cells)) for cells in lines[2:]}
    assert list(by_name) == [REFERENCE, "random 0.25", "similarity 0.25"]
    ours = by_name["similarity 0.25"]
    assert (ours["right %"], ours["lift"], ours["seeds"]) == ("71.0", "2.50", "2")
    assert ours["less unpruned"].startswith("-9.5 ± 6.4")
    assert ours["less random"].startswith("+20.2 ± 3.2")


def test_the_page_has_the_tables_of_the_log() -> None:
    page, made = report.PAGE.read_text(), report.tables(report.RESULTS)
    assert fill(page, made) == page
    assert all(f"<!-- {name} -->" in page for name in made)
    changed = fill(page, dict.fromkeys(made, "| another |\n"))
    assert changed.count("| another |") == len(made) > 0


@pytest.mark.slow
def test_a_variant_of_transformers_trains_and_is_scored(data: Path, folder: Path) -> None:
    pytest.importorskip("transformers", minversion="4.57")
    pytest.importorskip("accelerate")
    train_and_score(TRANSFORMERS, data, folder)


def test_a_variant_of_lavis_trains_and_is_scored(data: Path, folder: Path) -> None:
    pytest.importorskip("lavis")
    train_and_score("blip_vqa", data, folder)


def train_and_score(arch: str, data: Path, folder: Path) -> None:
    from benchmarks.vqa import grid

    recipe = replace(RECIPE, arch=arch)
    rows = grid.wanted(recipe, [REFERENCE, "taught similarity 0.25"], ["steps", "none"], [0])
    assert len(rows) == 4
    found = {(row["variant"], row["budget"]): grid.run_row(row, data, folder) for row in rows}
    trained, as_it_is = (found["taught similarity 0.25", b] for b in ("steps", "none"))
    assert (trained["steps"], as_it_is["steps"]) == (3, 0)
    assert 0.4 < trained["operations"] < 1
    assert {*as_it_is["scores"]} == {"plan", "all tokens", "another question", "sign turned"}
    assert set(trained["scores"]["plan"]) == {"right", "share", "lift", "box lift"}
    plan = trained["scores"]["plan"]
    assert plan["lift"] == pytest.approx(9 * plan["share"], abs=1e-3)
    assert found[REFERENCE, "steps"]["scores"].keys() == {"plan"}
    again = grid.run_row(rows[1], data, folder)
    assert (rows[1]["variant"], rows[1]["budget"]) == ("taught similarity 0.25", "steps")
    assert again["scores"] == trained["scores"]
    with pytest.raises(ValueError, match="not known"):
        grid.check(["similarity"])
    assert grid.base_of(grid.recipe_of("continued", objects=4)) == replace(
        VqaRecipe(objects=4), steps=2500
    )


def test_transformers_trainer_takes_the_steps_of_the_study(data: Path, folder: Path) -> None:
    """The same questions in the same order, the same rates: the losses of a loop by hand."""
    pytest.importorskip("transformers", minversion="4.57")
    pytest.importorskip("accelerate")
    from benchmarks.vqa import hugging_face, training

    recipe = replace(RECIPE, arch=TRANSFORMERS)
    vocabulary = scenes.make(recipe, data, folder)
    questions = scenes.read(recipe, data, "train")
    found = []
    for fit in (training._fit, hugging_face.fit):
        model = training.build(recipe, vocabulary, seed=0)
        # Weights of transformers' own initial size would be next to 0.
        tower = model.inner.vision_model.encoder.layers[0]
        assert 0.01 < tower.mlp.fc1.weight.std() < 0.03
        losses: list[float] = []
        handle = training.prune(model, VARIANTS["similarity 0.25"].config("continued"))
        with recorded_lengths([model.inner.vision_model.encoder.layers[-1]]) as lengths:
            fit(
                model.train(), recipe, 5, questions, 0, handle,
                lambda step, loss, losses=losses: losses.append(loss),
            )  # fmt: skip
        assert lengths == [handle.plan.tokens[-1]] * 5
        found.append(losses)
    assert len(found[1]) == 5
    assert found[1] == pytest.approx(found[0], abs=2e-4)  # the Trainer rounds what it logs


def test_a_control_lets_the_next_question_choose_on_lavis(data: Path, folder: Path) -> None:
    pytest.importorskip("lavis")
    from benchmarks.vqa import training

    model = training.build(RECIPE, scenes.make(RECIPE, data, folder), seed=0).eval()
    handle = elip_plugin.apply(model, VARIANTS["similarity 0.25"].config("continued"))
    given = scenes.read(RECIPE, data, "train").samples([0, 1, 2, 3])
    texts = given["text_input"]
    assert len({*texts}) == 4
    kept = []
    for control, asked in (("", texts), ("another question", texts), ("", texts[1:] + texts[:1])):
        with torch.no_grad(), handle.trace() as trace, training._controlled(handle, control):
            model.forward_encoder({**given, "text_input": asked})
        kept.append(trace.stages[-1].kept)
    own, controlled, rolled = kept
    assert torch.equal(controlled, rolled) and not torch.equal(own, rolled)


@pytest.mark.slow
def test_lavis_own_runner_trains_on_the_questions(data: Path, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("lavis")
    from benchmarks.vqa.export import export

    export(RECIPE, data, folder, tmp_path / "data" / "questions")
    project = Path(__file__).parents[2] / "lavis_configs" / "projects" / "blip" / "scenes.yaml"
    options = [
        "run.max_epoch=2",
        "run.batch_size_train=4",
        "run.num_workers=0",
        "run.output_dir=out",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "elip_plugin", "lavis", "train", "--cfg-path", str(project),
         "--options", *options],
        cwd=tmp_path, env={**os.environ, "PWD": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "ELIP prunes the vision tower by the question: 37 tokens -> 11" in done.stderr
    (scores,) = (tmp_path / "out").rglob("evaluate.txt")
    assert 0 <= json.loads(scores.read_text())["acc"] <= 100
