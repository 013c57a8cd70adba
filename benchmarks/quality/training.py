"""One training of one variant, and its scores."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

import elip_plugin
from benchmarks.quality import models
from benchmarks.quality.models import StudyModel
from benchmarks.quality.pairs import Pairs, batches, whole
from benchmarks.quality.recipe import Recipe
from benchmarks.quality.scores import contrastive_loss, retrieval
from benchmarks.quality.variants import FAST, Variant

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
    model = models.create(recipe, train, held_out)
    handle = None if variant.config is None else elip_plugin.apply(model.model, variant.config)
    torch.manual_seed(seed)  # whatever the making drew
    losses = _train(model, handle, variant, recipe, train, seed, progress)
    if handle is not None:
        handle.remove()
    scores = {"full": _score(model, held_out)}
    pruned = dict(variant.elip or FAST)  # a model that was never pruned has no plan of its own
    with warnings.catch_warnings():  # that the paper's plan saves nothing at test time
        warnings.simplefilter("ignore")
        elip_plugin.apply(model.model, _by_image(pruned))
    scores["pruned"] = _score(model, held_out)
    return {
        "losses": losses,
        "scores": scores,
        "seconds": round(time.perf_counter() - start, 1),
    }


def _by_image(elip: dict[str, Any]) -> dict[str, Any]:
    """Return a variant's plan for evaluation: no text, no schedule."""
    kept = ("preset", "stages", "reference_depth", "reducer", "merge")
    plan = {key: elip[key] for key in kept if key in elip}
    return {**plan, "text_weight": 0.0, "eval_mode": "image"}


def _train(
    model: StudyModel,
    handle: elip_plugin.Handle | None,
    variant: Variant,
    recipe: Recipe,
    pairs: Pairs,
    seed: int,
    progress: Callable[[], None],
) -> list[float]:
    optimizer = torch.optim.AdamW(
        model.model.parameters(),
        recipe.learning_rate,
        (0.9, 0.98),
        weight_decay=recipe.weight_decay,
    )
    model.model.train()
    steps = recipe.steps(len(pairs))
    per_epoch = steps // recipe.epochs
    losses, total = [], 0.0
    for step, (images, which) in enumerate(batches(pairs, recipe.batch, recipe.epochs, seed)):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step, steps)
        if handle is not None:
            handle.update_progress(step, steps)
        loss = training_loss(model, variant, images, which, step / steps)
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
    model: StudyModel, variant: Variant, images: Tensor, which: Tensor, done: float
) -> Tensor:
    """Run a variant's training forward.

    Args:
        model: The model.
        variant: What may change its input or its guide.
        images: Images [B, 3, side, side].
        which: Indices of the pairs in the training split [B].
        done: Share of the training that is done.

    Returns:
        The loss.
    """
    if done < variant.coarse:
        images = F.interpolate(images, scale_factor=COARSE, mode="bicubic", antialias=True)
    with _control(model, variant, which):
        return model.loss(images, which, done)


def _control(model: StudyModel, variant: Variant, which: Tensor) -> AbstractContextManager[Any]:
    if variant.control == "shuffled":
        return elip_plugin.guide(model.model, model.guide(which).roll(1, 0))
    if variant.control == "by caption":

        def rand(batch: int, tokens: int, *, device: torch.device) -> Tensor:
            own = [torch.Generator().manual_seed(pair) for pair in which.tolist()]
            return torch.stack([draw(tokens, generator=g) for g in own]).to(device)

        draw = torch.rand  # with which the reducer "random" decides what stays
        return mock.patch.object(torch, "rand", rand)
    return nullcontext()


def _score(model: StudyModel, pairs: Pairs) -> dict[str, float]:
    images, captions = whole(pairs), list(pairs.captions)
    parts = [
        model.features(images[i : i + CHUNK], captions[i : i + CHUNK])
        for i in range(0, len(pairs), CHUNK)
    ]
    image = torch.cat([part[0] for part in parts]).float()
    text = torch.cat([part[1] for part in parts]).float()
    loss = contrastive_loss(image, text, model.scale())
    return {k: round(v, 5) for k, v in {"loss": loss, **retrieval(image, text)}.items()}
