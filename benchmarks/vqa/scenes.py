"""The questions in memory, and their batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.data.scene_files import Scenes, read_scenes, write_scenes
from benchmarks.data.scenes import cell_box, patches_in
from benchmarks.photos.mosaics import write_mosaics
from benchmarks.vqa.recipe import KINDS, PHOTOGRAPHS, VqaRecipe
from examples.openmoji.vocab import write_vocab


@dataclass(frozen=True)
class Asked:
    """A question about a picture.

    Attributes:
        picture: Which picture.
        kind: Its kind.
        question: The question.
        answer: The answer.
        patches: Patches of the objects that it is about, their ground included.
        inner: Those of them that lie in the objects' own boxes.
    """

    picture: int
    kind: str
    question: str
    answer: str
    patches: frozenset[int]
    inner: frozenset[int]


@dataclass(frozen=True)
class Questions:
    """Questions of a split of scenes.

    Attributes:
        scenes: The scenes.
        asked: Their questions of the recipe's kinds.
        answers: All answers to those.
    """

    scenes: Scenes
    asked: list[Asked]
    answers: list[str]

    def samples(self, which: list[int]) -> dict[str, Any]:
        """Return LAVIS' samples of some questions, with pictures [B, 3, side, side]."""
        chosen = [self.asked[i] for i in which]
        pictures = torch.from_numpy(self.scenes.pictures[[one.picture for one in chosen]])
        return {
            "image": pictures.permute(0, 3, 1, 2).float() / 127.5 - 1,
            "text_input": [one.question for one in chosen],
            "answer": [one.answer for one in chosen],
            "weight": torch.ones(len(chosen)),
            "n_answers": torch.ones(len(chosen), dtype=torch.long),
            **{"epoch": 0, "iters": 0, "num_iters_per_epoch": 1},
        }

    @cached_property
    def texts(self) -> list[str]:
        """All texts that a tokenizer must know."""
        return [text for one in self.asked for text in (one.question, one.answer)]


def folder_of(recipe: VqaRecipe, data: Path) -> Path:
    """Return the folder of a recipe's scenes."""
    kind = "mosaics" if recipe.source == PHOTOGRAPHS else "scenes"
    return data / f"{kind}-{recipe.objects}-{recipe.names}"


def make(recipe: VqaRecipe, data: Path, pictures: Path) -> Path:
    """Make a recipe's scenes and vocabulary, unless they are there.

    Args:
        recipe: Says how many objects and names.
        data: Folder of all scenes.
        pictures: Folder that `python -m benchmarks.data emojis` wrote, or Tiny ImageNet's.

    Returns:
        The vocabulary.
    """
    folder = folder_of(recipe, data)
    if not folder.exists() and recipe.source == PHOTOGRAPHS:
        cache = data / "photographs"
        write_mosaics(folder, pictures, cache, recipe.objects, names=recipe.names)
    elif not folder.exists():
        write_scenes(folder, pictures, recipe.objects, names=recipe.names)
    vocabulary = data / f"{folder.name}-vocab.txt"
    if not vocabulary.exists():
        write_vocab(
            read(recipe, data, "train", kinds=",".join(KINDS[recipe.source])).texts, vocabulary
        )
    return vocabulary


def read(recipe: VqaRecipe, data: Path, split: str, kinds: str = "") -> Questions:
    """Read the questions of a split.

    Args:
        recipe: Says which.
        data: Folder of all scenes.
        split: "train" or "held_out".
        kinds: Kinds of question, in place of the recipe's.

    Returns:
        The questions.
    """
    scenes = read_scenes(folder_of(recipe, data), split)
    wanted = (kinds or recipe.kinds).split(",")
    cells = [
        frozenset(patches_in(cell_box(i, recipe.objects, recipe.size), recipe.size, recipe.patch))
        for i in range(recipe.objects)
    ]
    asked = [
        Asked(
            picture,
            one["kind"],
            one["question"],
            one["answer"],
            frozenset().union(*(cells[i] for i in one["objects"])),
            frozenset(
                patch
                for i in one["objects"]
                for patch in patches_in(scenes.boxes[picture][i], recipe.size, recipe.patch)
            ),
        )
        for picture, row in enumerate(scenes.rows)
        for one in row["questions"]
        if one["kind"] in wanted
    ]
    return Questions(scenes, asked, sorted({a for kind in wanted for a in scenes.answers[kind]}))


def batches(questions: Questions, size: int, steps: int, seed: int) -> Iterator[dict[str, Any]]:
    """Iterate over the batches of a training; those of each step depend on the seed alone.

    Args:
        questions: What to train on.
        size: Questions per batch.
        steps: How many batches.
        seed: Decides the order.

    Yields:
        Samples.
    """
    per_epoch = len(questions.asked) // size
    order: Tensor | None = None
    for step in range(steps):
        epoch, place = divmod(step, per_epoch)
        if place == 0:
            generator = torch.Generator().manual_seed(10_000 * seed + epoch)
            order = torch.randperm(len(questions.asked), generator=generator)
        assert order is not None
        yield questions.samples(order[place * size : (place + 1) * size].tolist())
