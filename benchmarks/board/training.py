"""One training of one variant, and its scores."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

import elip_plugin
from benchmarks.board.evaluation import Evaluation
from benchmarks.board.model import MOST_SCALE, StudyModel
from benchmarks.board.pairs import Pairs, batches
from benchmarks.board.recipe import BoardRecipe
from benchmarks.board.variants import Variant
from elip_plugin.reducers import Selection

POINTS = 6
"""How many times a training is scored with all tokens, at even distances, the end included."""


def run(
    variant: Variant,
    recipe: BoardRecipe,
    steps: int,
    train: Pairs,
    evaluation: Evaluation,
    seed: int,
    *,
    weights: Path | None = None,
    keep: Path | None = None,
    device: str = "cpu",
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Train a variant and score it.

    Args:
        variant: What to train.
        recipe: How; the same for all variants.
        steps: Optimizer steps.
        train: Pairs to train on.
        evaluation: How to score.
        seed: Decides the initial weights, the order and the changes of the pictures.
        weights: File of the weights to start from; None for random ones.
        keep: File to write the trained weights to; None to leave them.
        device: Where to train.
        progress: Called after each part of the training that is scored.

    Returns:
        The curve (step, mean training loss since the last point, and what the evaluation scores
        along the training), and the scores with all tokens ("all") and with each plan at test time.
    """
    start = time.perf_counter()
    model = build(recipe, evaluation, seed, weights)
    model.model.to(device)
    curve = fit(model, variant, recipe, steps, train, evaluation, seed, progress)
    if keep is not None:
        save(model, keep)
    scores = {"all": evaluation.score(model, None)}
    scores.update({name: evaluation.score(model, plan) for name, plan in evaluation.plans.items()})
    return {"curve": curve, "scores": scores, "seconds": round(time.perf_counter() - start, 1)}


def build(
    recipe: BoardRecipe, evaluation: Evaluation, seed: int, weights: Path | None = None
) -> StudyModel:
    """Build the model of a seed.

    Args:
        recipe: Its sizes.
        evaluation: Knows all captions.
        seed: Decides the initial weights.
        weights: File of weights; None for random ones.

    Returns:
        The model, unpruned.
    """
    torch.manual_seed(seed)
    model = StudyModel(recipe, sorted(set(evaluation.captions)))
    if weights is not None:
        model.model.load_state_dict(torch.load(weights, weights_only=True))
    return model


def save(model: StudyModel, path: Path) -> None:
    """Write a model's weights to a file; a killed process leaves no half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(model.model.state_dict(), partial)
    partial.rename(path)


def fit(
    model: StudyModel,
    variant: Variant,
    recipe: BoardRecipe,
    steps: int,
    train: Pairs,
    evaluation: Evaluation,
    seed: int,
    progress: Callable[[], None] = lambda: None,
) -> list[dict[str, float]]:
    """Train a model in place; it is unpruned again afterwards.

    Args:
        model: From `build`.
        variant: What to train.
        recipe: How.
        steps: Optimizer steps.
        train: Pairs to train on.
        evaluation: How to score along the training.
        seed: Decides the order and the changes of the pictures.
        progress: Called after each part of the training that is scored.

    Returns:
        The curve; see `run`.
    """
    tokens = model.tokenize(train.captions)
    weights = list(model.model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [w for w in weights if w.ndim >= 2], "weight_decay": recipe.weight_decay},
            {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
        ],
        recipe.learning_rate,
        (0.9, 0.98),
    )
    device = weights[0].device
    points = {round(steps * (i + 1) / POINTS) for i in range(POINTS)}
    curve, losses = [], []
    config, handle = variant.config, None
    if config is not None:
        handle = elip_plugin.apply(model.model, config)
    torch.manual_seed(seed)  # whatever the making drew
    model.model.train()
    for step, (images, which) in enumerate(batches(train, recipe.batch, steps, seed)):
        done = step / steps
        if variant.config_at(done) != config:
            config = variant.config_at(done)
            if handle is not None:
                handle.remove()
            handle = None if config is None else elip_plugin.apply(model.model, config)
        for group in optimizer.param_groups:
            group["lr"] = variant.rate * recipe.rate(step, steps)
        if handle is not None:
            handle.update_progress(step, steps)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            loss = training_loss(model, variant, images.to(device), tokens[which].to(device), done)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(weights, recipe.clip)
        optimizer.step()
        with torch.no_grad():
            model.model.logit_scale.clamp_(0, MOST_SCALE)
        losses.append(loss.item())
        if step + 1 in points:
            disabled = nullcontext() if handle is None else handle.disabled()
            with disabled, torch.random.fork_rng(devices=[]):
                found = evaluation.along(model)
            curve.append({"step": step + 1, "loss": round(sum(losses) / len(losses), 5), **found})
            losses = []
            progress()
    if handle is not None:
        handle.remove()
    return curve


def training_loss(
    model: StudyModel, variant: Variant, images: Tensor, tokens: Tensor, done: float
) -> Tensor:
    """Run a variant's training forward.

    Args:
        model: The model.
        variant: What may change its input, its guide or its choice.
        images: Pictures [B, 3, side, side].
        tokens: Tokens of their captions [B, T].
        done: Share of the training that is done.

    Returns:
        The loss.
    """
    if done < variant.small_until:
        images = F.interpolate(images, scale_factor=0.5, mode="bilinear", antialias=True)
    with _control(model, variant, tokens):
        return model.loss(images, tokens)


def _control(model: StudyModel, variant: Variant, tokens: Tensor) -> AbstractContextManager[Any]:
    if variant.control == "shuffled text":
        return elip_plugin.find_handle(model.model).guide(model.guide(tokens).roll(1, 0))
    if variant.control == "sign turned":
        return elip_plugin.find_handle(model.model).guide(-model.guide(tokens))
    if variant.control == "another picture's choice":
        assert variant.config is not None
        reducer = type(variant.config.reducer)
        decide = reducer.decide

        def rolled(self: Any, *args: Any) -> Selection:
            own = decide(self, *args)
            weights = None if own.weights is None else own.weights.roll(1, 0)
            return Selection(own.kept.roll(1, 0), own.dropped.roll(1, 0), weights)

        return mock.patch.object(reducer, "decide", rolled)
    return nullcontext()
