"""One training of one variant, and its scores."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import elip_plugin
from elip_plugin.patching.monkeypatch import replaced
from elip_plugin.quality import trial as trials
from elip_plugin.quality.pairs import Pairs, batches, whole
from elip_plugin.quality.recipe import Recipe
from elip_plugin.quality.scores import contrastive_loss, retrieval
from elip_plugin.quality.variants import FAST, Variant
from elip_plugin.reducers import random as random_reducer

COARSE = 0.75
"""Share of the image size in the coarse part of a training."""

CHUNK = 250
"""Pairs encoded at a time for the scores."""


def run(
    variant: Variant,
    recipe: Recipe,
    train: Pairs,
    held_out: Pairs,
    seed: int,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Train a variant and score it on the held-out pairs.

    Args:
        variant: What to train.
        recipe: How; the same for all variants.
        train: Pairs to train on.
        held_out: Pairs to score on.
        seed: Decides the initial weights, the order and the crops.
        progress: Called after each epoch.

    Returns:
        Mean losses per epoch, and the scores with all tokens and pruned by the image alone.
    """
    start = time.perf_counter()
    torch.manual_seed(seed)
    trial = trials.make(recipe.family, recipe, list(train.captions), list(held_out.captions))
    steps = recipe.steps(len(train))
    config = variant.config(steps)
    if config is not None:
        elip_plugin.apply(trial.model, config)
    torch.manual_seed(seed)  # whatever the making drew
    losses = _train(trial, variant, recipe, train, seed, steps, progress)
    if config is not None:
        elip_plugin.find_handle(trial.model).remove()
    scores = {"full": _score(trial, held_out)}
    pruned = dict(variant.elip or FAST)  # a model that was never pruned has no plan of its own
    with warnings.catch_warnings():  # that the paper's plan saves nothing at test time
        warnings.simplefilter("ignore")
        elip_plugin.apply(trial.model, _by_image(pruned))
    scores["pruned"] = _score(trial, held_out)
    return {
        "losses": losses,
        "scores": scores,
        "seconds": round(time.perf_counter() - start, 1),
    }


def _by_image(elip: dict[str, Any]) -> dict[str, Any]:
    """A variant's plan for evaluation: no text, no schedule."""
    kept = ("preset", "stages", "reference_depth", "reducer", "merge")
    plan = {key: elip[key] for key in kept if key in elip}
    return {**plan, "text_weight": 0.0, "eval": "image"}


def _train(
    trial: trials.Trial,
    variant: Variant,
    recipe: Recipe,
    pairs: Pairs,
    seed: int,
    steps: int,
    progress: Callable[[], None],
) -> list[float]:
    optimizer = torch.optim.AdamW(
        trial.model.parameters(),
        recipe.learning_rate,
        (0.9, 0.98),
        weight_decay=recipe.weight_decay,
    )
    trial.model.train()
    per_epoch = steps // recipe.epochs
    losses, total = [], 0.0
    for step, (images, which) in enumerate(batches(pairs, recipe.batch, recipe.epochs, seed)):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step, steps)
        loss = training_loss(trial, variant, images, which, step / steps)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        total += loss.item()
        if (step + 1) % per_epoch == 0:
            losses.append(round(total / per_epoch, 5))
            total = 0.0
            progress()
    return losses


def training_loss(
    trial: trials.Trial, variant: Variant, images: Tensor, which: Tensor, done: float
) -> Tensor:
    """Run a variant's training forward.

    Args:
        trial: The model.
        variant: What may change its input or its guide.
        images: Images [B, 3, side, side].
        which: The pairs' places in the training split [B].
        done: Share of the training that is done.

    Returns:
        The loss.
    """
    if done < variant.coarse:
        images = F.interpolate(images, scale_factor=COARSE, mode="bicubic", antialias=True)
    with _control(trial, variant, which):
        return trial.loss(images, which, done)


def _control(trial: trials.Trial, variant: Variant, which: Tensor) -> AbstractContextManager[Any]:
    if variant.control == "shuffled":
        return elip_plugin.guide(trial.model, trial.guide(which).roll(1, 0))
    if variant.control == "by caption":

        def draw(batch: int, tokens: int, device: torch.device) -> Tensor:
            own = [torch.Generator().manual_seed(pair) for pair in which.tolist()]
            return torch.stack([torch.rand(tokens, generator=g) for g in own]).to(device)

        return replaced(random_reducer, "draw", draw)
    return nullcontext()


def _score(trial: trials.Trial, pairs: Pairs) -> dict[str, float]:
    images, captions = whole(pairs), list(pairs.captions)
    parts = [
        trial.features(images[i : i + CHUNK], captions[i : i + CHUNK])
        for i in range(0, len(pairs), CHUNK)
    ]
    image = torch.cat([part[0] for part in parts]).float()
    text = torch.cat([part[1] for part in parts]).float()
    loss = contrastive_loss(image, text, trial.scale())
    return {k: round(v, 5) for k, v in {"loss": loss, **retrieval(image, text)}.items()}
