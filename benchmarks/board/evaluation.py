"""How a board scores its models: with all tokens, and with plans at test time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import elip_plugin
from benchmarks.board.model import StudyModel
from benchmarks.board.pairs import as_input

Plan = Mapping[str, Any]
"""An ELIP config in plain values."""

CHUNK = 250
"""Pictures encoded at a time."""

HALF = ((2, 0.60), (4, 0.38), (10, 0.25))
QUARTER = ((1, 0.35), (4, 0.20), (8, 0.12))
"""Blocks of 12 and keep ratios: about 0.5 and 0.3 of the token-layers."""


@dataclass(frozen=True)
class Evaluation:
    """How a board scores a model.

    Attributes:
        captions: All captions that the model meets, in training and in tests.
        score: Computes scores from 0 to 1, rounded, and a "loss", with all tokens (None) or a
            plan at test time. It leaves the model as it was.
        along: Computes what is scored along the training, at `benchmarks.board.training.POINTS`.
        plans: The plans at test time, by name.
    """

    captions: Sequence[str]
    score: Callable[[StudyModel, Plan | None], dict[str, float]]
    along: Callable[[StudyModel], dict[str, float]]
    plans: Mapping[str, Plan]


def plan_at_test(reducer: str, stages: Sequence[tuple[int, float]]) -> dict[str, Any]:
    """Return a plan at test time that reads no text.

    Args:
        reducer: What chooses.
        stages: Blocks of 12 and keep ratios.

    Returns:
        The plan.
    """
    listed = [{"block": block, "lookahead": 1, "keep": keep} for block, keep in stages]
    return {
        "stages": listed, "reference_depth": 12, "reducer": reducer, "text_weight": 0.0,
        "eval_mode": "image",
    }  # fmt: skip


@contextmanager
def evaluating(model: StudyModel, plan: Plan | None = None) -> Iterator[None]:
    """Put a model into evaluation without gradient, pruned by a plan, and back afterwards.

    Args:
        model: The model, without a plan of its own.
        plan: ELIP config to prune by; None for all tokens.

    Yields:
        Nothing.
    """
    training = model.model.training
    model.model.eval()
    torch.manual_seed(0)  # what random dropping keeps
    handle = None
    if plan is not None:
        with warnings.catch_warnings():  # that the paper's plan saves nothing at test time
            warnings.simplefilter("ignore")
            handle = elip_plugin.apply(model.model, plan)
    with torch.no_grad():
        yield
    if handle is not None:
        handle.remove()
    model.model.train(training)


def encode_pictures(model: StudyModel, pictures: Tensor) -> Tensor:
    """Encode pictures [N, 3, side, side], uint8, as normalized embeddings [N, E]."""
    device = model.model.logit_scale.device
    parts = [
        model.model.encode_image(as_input(part).to(device), normalize=True)
        for part in torch.split(pictures, CHUNK)
    ]
    return torch.cat(parts)


def rounded(scores: Mapping[str, float]) -> dict[str, float]:
    """Round scores as the log keeps them."""
    return {key: round(value, 5) for key, value in scores.items()}
