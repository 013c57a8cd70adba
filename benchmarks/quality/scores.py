"""Scores of a trained model on the held-out pictures, with all tokens or pruned."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.board.evaluation import (
    HALF,
    QUARTER,
    Evaluation,
    Plan,
    encode_pictures,
    evaluating,
    plan_at_test,
    rounded,
)
from benchmarks.board.model import StudyModel
from benchmarks.board.pairs import Pairs
from benchmarks.data.retrieval import name_retrieval

TEST_PLANS = {
    "half by tome": plan_at_test("tome", HALF),
    "half by attention": plan_at_test("elip", HALF),
    "half by random": plan_at_test("random", HALF),
    "quarter by attention": plan_at_test("elip", QUARTER),
    "quarter by random": plan_at_test("random", QUARTER),
}
"""Pruning at test time, by the picture alone: about 0.5 and 0.3 of the token-layers.

ToMe, with as many tokens merged in every block, ends at half."""


def score(model: StudyModel, pairs: Pairs, plan: Plan | None = None) -> dict[str, float]:
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
    with evaluating(model, plan):
        pictures = encode_pictures(model, pairs.pictures)
        texts = model.model.encode_text(model.tokenize(names).to(device), normalize=True)
        similarity: Tensor = (pictures @ texts.t()).float().cpu()
        loss = F.cross_entropy(model.model.logit_scale.exp().cpu() * similarity, own)
    return rounded({"loss": loss.item(), **name_retrieval(similarity, own)})


def evaluation(train: Pairs, held_out: Pairs) -> Evaluation:
    """Return how the board of emojis scores a model: MRR on names that were never trained."""
    return Evaluation(
        captions=[*train.captions, *held_out.captions],
        score=lambda model, plan: score(model, held_out, plan),
        along=lambda model: {"mrr": score(model, held_out)["mrr"]},
        plans=TEST_PLANS,
    )
