"""Write the questions as files that LAVIS' own data set of questions (`gqa`) reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from PIL import Image

from benchmarks.vqa.recipe import VqaRecipe
from benchmarks.vqa.scenes import make, read

SPLITS = ("train", "held_out")


def export(recipe: VqaRecipe, data: Path, pictures: Path, out: Path) -> None:
    """Write pictures, questions, all answers and a vocabulary.

    Args:
        recipe: Which scenes and questions.
        data: Folder of all scenes.
        pictures: Folder that `python -m benchmarks.data emojis` wrote, or Tiny ImageNet's.
        out: Folder to write to.
    """
    vocabulary = make(recipe, data, pictures)
    for split in SPLITS:
        questions = read(recipe, data, split)
        (out / split).mkdir(parents=True, exist_ok=True)
        names = [f"{split}/{i}.png" for i in range(len(questions.scenes))]
        for name, picture in zip(names, questions.scenes.pictures):
            Image.fromarray(picture).save(out / name)
        rows = [
            {"image": names[one.picture], "question": one.question, "answer": one.answer,
             "question_id": i}
            for i, one in enumerate(questions.asked)
        ]  # fmt: skip
        (out / f"{split}.json").write_text(json.dumps(rows))
    (out / "answers.json").write_text(json.dumps(questions.answers))
    shutil.copyfile(vocabulary, out / "vocab.txt")
