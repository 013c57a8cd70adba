"""Scores of a trained model on the held-out pictures, with all tokens or pruned."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import elip_plugin
from benchmarks.data.retrieval import name_retrieval
from benchmarks.quality.model import StudyModel
from benchmarks.quality.pairs import Pairs, as_input

CHUNK = 250
"""Pictures encoded at a time."""


def _plan(reducer: str, *stages: tuple[int, float]) -> dict[str, Any]:
    listed = [{"block": block, "lookahead": 1, "keep": keep} for block, keep in stages]
    return {
        "stages": listed, "reference_depth": 12, "reducer": reducer, "text_weight": 0.0,
        "eval_mode": "image",
    }  # fmt: skip


HALF = ((2, 0.60), (4, 0.38), (10, 0.25))
QUARTER = ((1, 0.35), (4, 0.20), (8, 0.12))
TEST_PLANS = {
    "half by tome": _plan("tome", *HALF),
    "half by attention": _plan("elip", *HALF),
    "half by random": _plan("random", *HALF),
    "quarter by attention": _plan("elip", *QUARTER),
    "quarter by random": _plan("random", *QUARTER),
}
"""Pruning at test time, by the picture alone: about 0.5 and 0.3 of the token-layers.

ToMe, with as many tokens merged in every block, ends at half."""


def score(model: StudyModel, pairs: Pairs, plan: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Rank names for pictures, and pictures for names.

    Args:
        model: The model, without a plan of its own.
        pairs: Held-out pictures; several have the same caption.
        plan: ELIP config to prune by; None for all tokens.

    Returns:
        "loss", the cross-entropy in nats of a picture's own name among all, and the scores of
        `name_retrieval`.
    """
    names = sorted(set(pairs.captions))
    places = {name: place for place, name in enumerate(names)}
    own = torch.tensor([places[caption] for caption in pairs.captions])
    device = model.model.logit_scale.device
    training = model.model.training
    model.model.eval()
    torch.manual_seed(0)  # what random dropping keeps
    handle = None
    if plan is not None:
        with warnings.catch_warnings():  # that the paper's plan saves nothing at test time
            warnings.simplefilter("ignore")
            handle = elip_plugin.apply(model.model, plan)
    with torch.no_grad():
        parts = [
            model.model.encode_image(as_input(part).to(device), normalize=True)
            for part in torch.split(pairs.pictures, CHUNK)
        ]
        texts = model.model.encode_text(model.tokenize(names).to(device), normalize=True)
        similarity: Tensor = (torch.cat(parts) @ texts.t()).float().cpu()
        loss = F.cross_entropy(model.model.logit_scale.exp().cpu() * similarity, own)
    if handle is not None:
        handle.remove()
    model.model.train(training)
    found = {"loss": loss.item(), **name_retrieval(similarity, own)}
    return {key: round(value, 5) for key, value in found.items()}
