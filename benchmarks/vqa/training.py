"""One training of one variant on questions, and its scores."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from statistics import mean
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import elip_plugin
from benchmarks.vqa import hugging_face
from benchmarks.vqa.recipe import TRANSFORMERS, VqaRecipe
from benchmarks.vqa.scenes import Questions, batches
from benchmarks.vqa.variants import CONTROLS, VARIANTS
from elip_plugin import ElipConfig
from elip_plugin.reducers import Selection, StageContext

POINTS = 3
"""How many times a training is scored, at even distances, the end included."""

WARMUP_LEVELS = 4
"""Levels of pruning below the target that a warm-up passes, no pruning included."""

CHUNK = 250
CURVE_QUESTIONS = 500
"""Questions of a score in the middle of a training."""


def build(recipe: VqaRecipe, vocabulary: Path, seed: int, weights: Path | None = None) -> Any:
    """Build LAVIS' model, or transformers', unpruned.

    Args:
        recipe: Its sizes.
        vocabulary: The tokenizer's words.
        seed: Decides the initial weights.
        weights: File of weights to start from; None for random ones.

    Returns:
        The model.
    """
    if recipe.arch == TRANSFORMERS:
        model: Any = hugging_face.build(recipe, vocabulary, seed)
    else:
        model = _build_lavis(recipe, vocabulary, seed)
    if weights is not None:
        model.load_state_dict(torch.load(weights, weights_only=True))
    return model


def _build_lavis(recipe: VqaRecipe, vocabulary: Path, seed: int) -> Any:
    from lavis.common.registry import registry

    torch.manual_seed(seed)
    section = {**recipe.section(vocabulary), "elip": dict(VARIANTS["random 0.5"].elip or {})}
    with redirect_stdout(StringIO()):  # BLIP prints the names of weights that it ties
        model = registry.get_model_class(f"elip_{recipe.arch}").from_config(section)
    elip_plugin.find_handle(model).remove()
    return model


def prune(model: Any, config: ElipConfig) -> elip_plugin.Handle:
    """Prune the model that a `hugging_face.Blip` holds, or LAVIS' own."""
    return elip_plugin.apply(model.inner if isinstance(model, hugging_face.Blip) else model, config)


def operations(model: Any, config: ElipConfig, samples: dict[str, Any]) -> float:
    """Count the average training step of a configuration, relative to an unpruned one.

    Args:
        model: The unpruned model.
        config: What to prune; its warm-up counts.
        samples: Some samples.

    Returns:
        Operations of forward and backward pass, text side and what chooses included.
    """

    def step(level: float) -> int:
        stages = tuple(replace(s, keep=1 - level * (1 - s.keep)) for s in config.stages)
        handle = prune(model, replace(config, stages=stages, warmup=0)) if level else None
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(dict(samples))["loss"].backward()
        if handle is not None:
            handle.remove()
        return int(counter.get_total_flops())

    model.train()
    unpruned, pruned = step(0), step(1)
    if not config.warmup:
        return pruned / unpruned
    rising = mean(step(level / WARMUP_LEVELS) for level in range(WARMUP_LEVELS))
    return (config.warmup * rising + (1 - config.warmup) * pruned) / unpruned


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
    handle = None if config is None else prune(model, config)
    points = {round(steps * (i + 1) / POINTS) for i in range(POINTS - 1)}
    curve: list[dict[str, Any]] = []
    losses: list[float] = []

    def after_step(step: int, loss: float) -> None:
        losses.append(loss)
        if step + 1 in points:
            with torch.random.fork_rng(devices=[]):
                found = score(model, held_out, handle, most=CURVE_QUESTIONS)
            curve.append({"step": step + 1, "loss": round(mean(losses), 4), **found})
            losses.clear()

    torch.manual_seed(seed)
    model.train()
    fit = hugging_face.fit if isinstance(model, hugging_face.Blip) else _fit
    if steps:
        fit(model, recipe, steps, questions, seed, handle, after_step)
    if losses:
        curve.append({"step": steps, "loss": round(mean(losses), 4)})
    scores = {"plan": score(model, held_out, handle)}
    if handle is not None:
        with handle.disabled():
            scores["all tokens"] = score(model, held_out)
        if steps == 0 and handle.config.eval_mode == "text":
            scores |= {name: score(model, held_out, handle, control=name) for name in CONTROLS}
        handle.remove()
    return {"curve": curve, "scores": scores, "seconds": round(time.perf_counter() - start, 1)}


def _fit(
    model: Any,
    recipe: VqaRecipe,
    steps: int,
    questions: Questions,
    seed: int,
    handle: elip_plugin.Handle | None,
    after_step: Callable[[int, float], None],
) -> None:
    """Train LAVIS' model; see `hugging_face.fit`."""
    optimizer = recipe.optimizer(model.parameters())
    weights = optimizer.param_groups[0]["params"]
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
        after_step(step, loss.item())


@torch.no_grad()
def score(
    model: Any,
    questions: Questions,
    handle: elip_plugin.Handle | None = None,
    *,
    most: int | None = None,
    control: str = "",
) -> dict[str, float]:
    """Answer held-out questions.

    Args:
        model: The model.
        questions: The questions.
        handle: What prunes it, in evaluation too; None for all tokens.
        most: Most questions to answer.
        control: One of `CONTROLS`.

    Returns:
        "right", the share of right answers; where patches are chosen also "share", the share of
        the kept ones that belong to the object asked about, and "lift", that over chance; and
        "box lift", the same of the object's own box, without the ground around it.
    """
    training = model.training
    model.eval()
    torch.manual_seed(0)  # what random dropping keeps
    number = list(range(len(questions.asked)))[:most]
    right: list[bool] = []
    shares: dict[str, list[float]] = {"": [], "box ": []}
    chances: dict[str, list[float]] = {"": [], "box ": []}
    for first in range(0, len(number), CHUNK):
        part = number[first : first + CHUNK]
        traced = nullcontext() if handle is None else handle.trace()
        with traced as trace, _controlled(handle, control):
            given = model.predict_answers(
                questions.samples(part),
                answer_list=questions.answers,
                inference_method="rank",
                num_ans_candidates=len(questions.answers),
            )
        right += [a == questions.asked[i].answer for a, i in zip(given, part)]
        if trace is not None and trace.stages[-1].groups is None:
            patches = trace.stages[0].sources.shape[-1]
            for row, i in zip(trace.stages[-1].kept.tolist(), part):
                kept = [patch for patch in row if patch >= 0]
                for name, own in (
                    ("", questions.asked[i].patches),
                    ("box ", questions.asked[i].inner),
                ):
                    shares[name].append(len(own & set(kept)) / len(kept))
                    chances[name].append(len(own) / patches)
    model.train(training)
    found = {"right": mean(right)}
    if shares[""]:
        found["share"] = mean(shares[""])
        found |= {f"{name}lift": mean(shares[name]) / mean(chances[name]) for name in shares}
    return {key: round(value, 5) for key, value in found.items()}


@contextmanager
def _controlled(handle: elip_plugin.Handle | None, control: str) -> Iterator[None]:
    """Let a wrong text choose: the next picture's, or its own with the sign turned round."""
    if not control or handle is None:
        yield
        return
    method = type(handle.config.reducer)
    decide = method.decide

    def wrong(self: Any, x: Any, stage: Any, context: StageContext) -> Selection:
        assert context.guide is not None
        further = context.further and partial(_further, context.further, control)
        guide = _wrong(context.guide, control)
        return decide(self, x, stage, replace(context, guide=guide, further=further))

    with mock.patch.object(method, "decide", wrong):
        yield


def _further(further: Callable[[Tensor], Tensor], control: str, y: Tensor) -> Tensor:
    if control == CONTROLS[0]:  # the next picture's question reads this one's tokens
        y = y.roll(1, 0)
    return _wrong(further(y), control)


def _wrong(guide: Tensor, control: str) -> Tensor:
    return guide.roll(-1, 0) if control == CONTROLS[0] else -guide
