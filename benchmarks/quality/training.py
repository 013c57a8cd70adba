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
from benchmarks.quality.model import MOST_SCALE, StudyModel
from benchmarks.quality.pairs import Pairs, batches
from benchmarks.quality.recipe import BASE, Recipe
from benchmarks.quality.scores import TEST_PLANS, score
from benchmarks.quality.variants import REFERENCE, VARIANTS, Variant
from elip_plugin.reducers import Selection, find_reducer

POINTS = 6
"""How many times a training is scored with all tokens, at even distances, the end included."""


def run(
    variant: Variant,
    recipe: Recipe,
    steps: int,
    train: Pairs,
    held_out: Pairs,
    seed: int,
    *,
    weights: Path | None = None,
    device: str = "cpu",
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Train a variant and score it on the held-out pairs.

    Args:
        variant: What to train.
        recipe: How; the same for all variants.
        steps: Optimizer steps.
        train: Pairs to train on.
        held_out: Pairs to score on.
        seed: Decides the initial weights, the order and the changes of the pictures.
        weights: File of the weights to start from; None for random ones.
        device: Where to train.
        progress: Called after each part of the training that is scored.

    Returns:
        The curve (step, mean training loss since the last point, MRR), and the scores with all
        tokens and with each plan of `TEST_PLANS`.
    """
    start = time.perf_counter()
    model = build(recipe, train, held_out, seed, weights)
    model.model.to(device)
    handle = None if variant.config is None else elip_plugin.apply(model.model, variant.config)
    torch.manual_seed(seed)  # whatever the making drew
    curve = _train(model, handle, variant, recipe, steps, train, held_out, seed, progress)
    if handle is not None:
        handle.remove()
    scores = {"all": score(model, held_out)}
    scores.update({name: score(model, held_out, plan) for name, plan in TEST_PLANS.items()})
    return {"curve": curve, "scores": scores, "seconds": round(time.perf_counter() - start, 1)}


def build(
    recipe: Recipe, train: Pairs, held_out: Pairs, seed: int, weights: Path | None = None
) -> StudyModel:
    """Build the model of a seed.

    Args:
        recipe: Its sizes.
        train: Pairs to train on.
        held_out: Pairs to score on.
        seed: Decides the initial weights.
        weights: File of weights; None for random ones.

    Returns:
        The model, unpruned.
    """
    torch.manual_seed(seed)
    model = StudyModel(recipe, sorted({*train.captions, *held_out.captions}))
    if weights is not None:
        model.model.load_state_dict(torch.load(weights, weights_only=True))
    return model


def train_base(path: Path, train: Pairs, held_out: Pairs, own: Pairs, seed: int) -> None:
    """Train what continued trainings start from, and write its weights.

    Args:
        path: The file to write.
        train: All training pairs, whose captions the model must know.
        held_out: Pairs to score on.
        own: Pairs to train on: those of `BASE`'s styles.
        seed: The seed.
    """
    model = build(BASE, train, held_out, seed)
    reference = VARIANTS[REFERENCE]
    _train(model, None, reference, BASE, BASE.steps(len(own)), own, held_out, seed, lambda: None)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(model.model.state_dict(), partial)
    partial.rename(path)  # a killed run leaves no half a file


def _train(
    model: StudyModel,
    handle: elip_plugin.Handle | None,
    variant: Variant,
    recipe: Recipe,
    steps: int,
    train: Pairs,
    held_out: Pairs,
    seed: int,
    progress: Callable[[], None],
) -> list[dict[str, float]]:
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
    model.model.train()
    for step, (images, which) in enumerate(batches(train, recipe.batch, steps, seed)):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step, steps)
        if handle is not None:
            handle.update_progress(step, steps)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            loss = training_loss(
                model, variant, images.to(device), tokens[which].to(device), step / steps
            )
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
                mrr = score(model, held_out)["mrr"]
            curve.append(
                {"step": step + 1, "loss": round(sum(losses) / len(losses), 5), "mrr": mrr}
            )
            losses = []
            progress()
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
        return elip_plugin.guide(model.model, model.guide(tokens).roll(1, 0))
    if variant.control == "sign turned":
        return elip_plugin.guide(model.model, -model.guide(tokens))
    if variant.control == "another picture's choice":
        assert variant.config is not None
        reducer = type(find_reducer(variant.config.reducer))
        decide = reducer.decide

        def rolled(self: Any, *args: Any) -> Selection:
            own = decide(self, *args)
            weights = None if own.weights is None else own.weights.roll(1, 0)
            return Selection(own.kept.roll(1, 0), own.dropped.roll(1, 0), weights)

        return mock.patch.object(reducer, "decide", rolled)
    return nullcontext()
