"""One training of one variant on questions, and its scores."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from io import StringIO
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

import elip_plugin
from benchmarks.vqa.recipe import VqaRecipe
from benchmarks.vqa.scenes import Questions, batches
from benchmarks.vqa.variants import CONTROLS, VARIANTS
from elip_plugin import ElipConfig
from elip_plugin.hosts.lavis.guide import is_read_by_text, reading_guide
from elip_plugin.hosts.lavis.models import ARCHS
from elip_plugin.hosts.lavis.text import text_token
from elip_plugin.measure.counts import count_by_operation
from elip_plugin.measure.preview import average_step
from elip_plugin.patching.install import find_pruner

POINTS = 3
"""How many times a training is scored, at even distances, the end included."""

CHUNK = 250
CURVE_QUESTIONS = 500
"""Questions of a score in the middle of a training."""


def build(recipe: VqaRecipe, vocabulary: Path, seed: int, weights: Path | None = None) -> Any:
    """Build LAVIS' model, unpruned.

    Args:
        recipe: Its sizes.
        vocabulary: The tokenizer's words.
        seed: Decides the initial weights.
        weights: File of weights to start from; None for random ones.

    Returns:
        The model.
    """
    torch.manual_seed(seed)
    with redirect_stdout(StringIO()):  # BLIP prints the names of weights that it ties
        section = {**recipe.section(vocabulary), "elip": dict(VARIANTS["random 0.5"].elip or {})}
        model = ARCHS[recipe.arch].from_config(section)
    elip_plugin.find_handle(model).remove()
    if weights is not None:
        model.load_state_dict(torch.load(weights, weights_only=True))
    return model


def operations(model: Any, samples: dict[str, Any]) -> float:
    """Count a pruned model's average training step, relative to an unpruned one's.

    Args:
        model: The patched model; its schedule counts.
        samples: Some samples.

    Returns:
        Operations of the step with the tower's by its plan; the text side as it is unpruned.
    """
    pruner = find_pruner(model)
    with pruner.disabled():
        whole = sum(count_by_operation(lambda: model(dict(samples))["loss"]).values())
        tower = model.visual_encoder.forward_features
        image = sum(count_by_operation(lambda: tower(samples["image"])).values())
    return 1 - image / whole * (1 - average_step(pruner))


def train(
    model: Any,
    config: ElipConfig | None,
    recipe: VqaRecipe,
    steps: int,
    questions: Questions,
    held_out: Questions,
    seed: int,
) -> dict[str, Any]:
    """Train a model in place, and score it.

    Args:
        model: From `build`.
        config: What to prune; None for nothing.
        recipe: How to train.
        steps: Optimizer steps; 0 scores the model as it is.
        questions: What to train on.
        held_out: What to score on.
        seed: Decides the order.

    Returns:
        The curve (step, mean training loss since the last point, share of right answers, lift),
        and "scores" of the plan and with all tokens, of a model that is not trained here also with
        each of `CONTROLS`; see `score`.
    """
    start = time.perf_counter()
    handle = None if config is None else elip_plugin.apply(model, config)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        weights, recipe.learning_rate, (0.9, 0.98), weight_decay=recipe.weight_decay
    )
    points = {round(steps * (i + 1) / POINTS) for i in range(POINTS - 1)}
    curve, losses = [], []
    torch.manual_seed(seed)
    model.train()
    for step, samples in enumerate(batches(questions, recipe.batch, steps, seed)):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step, steps)
        if handle is not None:
            handle.update_progress(step, steps)
        loss = model(samples)["loss"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, recipe.clip)
        optimizer.step()
        losses.append(loss.item())
        if step + 1 in points:
            with torch.random.fork_rng(devices=[]):
                found = score(model, held_out, CURVE_QUESTIONS)
            curve.append({"step": step + 1, "loss": round(mean(losses), 4), **found})
            losses = []
    if losses:
        curve.append({"step": steps, "loss": round(mean(losses), 4)})
    scores = {"plan": score(model, held_out)}
    if handle is not None:
        with handle.disabled():
            scores["all tokens"] = score(model, held_out)
        if steps == 0 and config is not None and config.eval_mode == "text":
            scores |= {name: score(model, held_out, control=name) for name in CONTROLS}
        handle.remove()
    return {"curve": curve, "scores": scores, "seconds": round(time.perf_counter() - start, 1)}


@torch.no_grad()
def score(
    model: Any, questions: Questions, most: int | None = None, control: str = ""
) -> dict[str, float]:
    """Answer held-out questions.

    Args:
        model: The model; if it is patched, pruned as its config says.
        questions: The questions.
        most: Most questions to answer.
        control: One of `CONTROLS`.

    Returns:
        "right", the share of right answers; where patches are chosen also "share", the share of
        the kept ones that belong to the object asked about, and "lift", that over chance.
    """
    training = model.training
    model.eval()
    torch.manual_seed(0)  # what random dropping keeps
    pruner = find_pruner(model) if hasattr(model, "elip") else None
    pruned = pruner is not None and pruner.is_active(False)
    number = list(range(len(questions.asked)))[:most]
    right, shares, chances = [], [], []
    for first in range(0, len(number), CHUNK):
        part = number[first : first + CHUNK]
        samples = questions.samples(part)
        with _traced(model, pruned) as trace, _controlled(model, samples, control):
            given = model.predict_answers(
                samples,
                answer_list=questions.answers,
                inference_method="rank",
                num_ans_candidates=len(questions.answers),
            )
        right += [a == questions.asked[i].answer for a, i in zip(given, part)]
        if trace is not None and trace.stages[-1].groups is None:
            patches = trace.stages[0].sources.shape[-1]
            for row, i in zip(trace.stages[-1].kept.tolist(), part):
                kept = [patch for patch in row if patch >= 0]
                own = questions.asked[i].patches
                shares.append(len(own & set(kept)) / len(kept))
                chances.append(len(own) / patches)
    model.train(training)
    found = {"right": mean(right)}
    if shares:
        found |= {"share": mean(shares), "lift": mean(shares) / mean(chances)}
    return {key: round(value, 5) for key, value in found.items()}


@contextmanager
def _traced(model: Any, pruned: bool) -> Iterator[Any]:
    if not pruned:
        yield None
        return
    with elip_plugin.find_handle(model).trace() as trace:
        yield trace


def _controlled(model: Any, samples: dict[str, Any], control: str) -> AbstractContextManager[Any]:
    """Guide a model by a wrong text."""
    if not control:
        return nullcontext()
    questions = samples["text_input"]
    wrong = control == CONTROLS[0]
    texts = [*questions[1:], questions[0]] if wrong else questions
    guide: Tensor = (
        reading_guide(model, model.tokenizer, texts)
        if is_read_by_text(model)
        else text_token(model, texts)
    )
    return elip_plugin.guide(model, guide if wrong else -guide)
