"""What continued trainings start from."""

from __future__ import annotations

from pathlib import Path

from benchmarks.board.pairs import Pairs
from benchmarks.board.training import build, fit, save
from benchmarks.board.variants import REFERENCE, VARIANTS
from benchmarks.quality.recipe import BASE
from benchmarks.quality.scores import evaluation


def train_base(path: Path, train: Pairs, held_out: Pairs, own: Pairs, seed: int) -> None:
    """Train what continued trainings start from, and write its weights.

    Args:
        path: The file to write.
        train: All training pairs, whose captions the model must know.
        held_out: Pairs to score on.
        own: Pairs to train on: those of `BASE`'s styles.
        seed: The seed.
    """
    how = evaluation(train, held_out)
    model = build(BASE, how, seed)
    fit(model, VARIANTS[REFERENCE], BASE, BASE.steps(len(own)), own, how, seed)
    save(model, path)
