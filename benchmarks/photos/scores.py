"""Zero-shot scores of a trained model, by OpenCLIP's own classifier, and by means of classes."""

from __future__ import annotations

from collections.abc import Sequence

import open_clip
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
from benchmarks.photos.folder import Photos

PROMPT = "a photo of a {}"

TEST_PLANS = {
    "half by tome": plan_at_test("tome", HALF),
    "half by attention": plan_at_test("evit", HALF),
    "half by random": plan_at_test("random", HALF),
    "quarter by attention": plan_at_test("evit", QUARTER),
    "quarter by random": plan_at_test("random", QUARTER),
    "quarter by pool": plan_at_test("pool", ((0, 0.25),)),
}
"""Pruning at test time, by the picture alone: about 0.5 and 0.3 of the token-layers.

ToMe, which merges as many tokens in every block, ends at half; its place among the quarters has
the picture at half its side."""

ALONG = 5
"""Every which photograph of the validation is scored along the training."""


def zero_shot(
    model: StudyModel, pictures: Tensor, own: Tensor, names: Sequence[str]
) -> dict[str, float]:
    """Classify pictures by the names of their classes.

    Args:
        model: The model, in evaluation.
        pictures: Embeddings of pictures [N, E], normalized.
        own: The class of each [N], a place in `names`.
        names: Names of the classes, 5 or more.

    Returns:
        "top1", "top5": shares of the pictures whose name is the nearest, or among the nearest five;
        "loss": cross-entropy of the own name, in nats.
    """
    classifier = open_clip.build_zero_shot_classifier(
        model.model, model.tokenize, names, [PROMPT], device=pictures.device
    )
    logits = model.model.logit_scale.exp() * pictures @ classifier
    own = own.to(logits.device)
    top1, top5 = (accuracy(logits, own, k) for k in (1, 5))
    return {"top1": top1, "top5": top5, "loss": F.cross_entropy(logits, own).item()}


def accuracy(logits: Tensor, own: Tensor, k: int) -> float:
    """Compute the share of rows whose own column is among the k highest.

    (OpenCLIP's own function, and clip_benchmark's after it, fails beside NumPy 2.4.)

    Args:
        logits: Finite values [N, M].
        own: Columns [N].
        k: From 1 to M.

    Returns:
        The share, 0 to 1.
    """
    right = logits.topk(k, dim=1).indices == own[:, None]
    return right.any(dim=1).double().mean().item()


def by_means(pictures: Tensor, own: Tensor, shots: Tensor, classes: Tensor) -> float:
    """Classify pictures by the nearest mean of some photographs of a class, without its name.

    Args:
        pictures: Embeddings of pictures [N, E], normalized.
        own: The class of each [N], from 0.
        shots: Embeddings of other photographs [M, E], normalized.
        classes: The class of each of those [M], every class among them.

    Returns:
        The share of the pictures whose class has the nearest mean.
    """
    hot = F.one_hot(classes).to(shots)
    means = F.normalize(hot.t() @ shots, dim=-1)
    return accuracy(pictures @ means.t(), own.to(pictures.device), 1)


def evaluation(
    names: Sequence[str],
    trained: Sequence[int],
    validation: Photos,
    shots: Photos | None = None,
) -> Evaluation:
    """Return how a model is scored.

    Args:
        names: Names of all classes.
        trained: Classes that the training shows.
        validation: Photographs of all classes.
        shots: Photographs of the classes that it does not show, to make their means of; None
            where it shows all.

    Returns:
        The evaluation: "top1", "top5" and "loss" over the trained classes. Where some are not
        trained, "unseen_top1" and "unseen_top5" over those, by names that were never trained, and
        "unseen_means", the top-1 by means of `shots`.
    """
    unseen = [place for place in range(len(names)) if place not in set(trained)]
    own_names, other_names = ([names[place] for place in places] for places in (trained, unseen))
    seen_photos = validation.of(trained)
    few = Photos(seen_photos.pictures[::ALONG], seen_photos.own[::ALONG])
    unseen_photos, unseen_shots = (
        (validation.of(unseen), shots.of(unseen)) if shots is not None else (None, None)
    )

    def score(model: StudyModel, plan: Plan | None) -> dict[str, float]:
        with evaluating(model, plan):
            pictures = encode_pictures(model, seen_photos.pictures)
            found = zero_shot(model, pictures, seen_photos.own, own_names)
            if unseen_photos is not None and unseen_shots is not None:
                pictures = encode_pictures(model, unseen_photos.pictures)
                other = zero_shot(model, pictures, unseen_photos.own, other_names)
                found |= {f"unseen_{key}": other[key] for key in ("top1", "top5")}
                means = encode_pictures(model, unseen_shots.pictures)
                found["unseen_means"] = by_means(
                    pictures, unseen_photos.own, means, unseen_shots.own
                )
        return rounded(found)

    def along(model: StudyModel) -> dict[str, float]:
        with evaluating(model):
            pictures = encode_pictures(model, few.pictures)
            found = zero_shot(model, pictures, few.own, own_names)
        return rounded({"top1": found["top1"]})

    captions = [PROMPT.format(name) for name in names]
    return Evaluation(captions, score, along, TEST_PLANS)
