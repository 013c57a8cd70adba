"""Trained models looked at: which patches merge, by the objects' boxes; and as a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

import elip_plugin
from benchmarks.board.evaluation import CHUNK, evaluating
from benchmarks.board.model import StudyModel, config_of
from benchmarks.board.pairs import as_input
from benchmarks.board.recipe import SIDE
from benchmarks.board.training import build
from benchmarks.data.scenes import patches_in
from benchmarks.photos.folder import FolderError, read_boxes
from benchmarks.photos.grid import study_of, weights_of
from benchmarks.photos.recipe import PhotoRecipe
from benchmarks.photos.scores import TEST_PLANS

MODEL = "ViT-photos"
"""Name of the model config that `write_model` writes."""

LARGEST = 0.5
"""Photographs whose box has more of the patches say little: the ground is what is left."""


def trained_model(row: Mapping[str, Any], data: Path, cache_folder: Path) -> StudyModel:
    """Build the model that a training ended with.

    Args:
        row: A line of the log.
        data: Folder of Tiny ImageNet.
        cache_folder: Folder with the trained weights.

    Returns:
        The model.

    Raises:
        FileNotFoundError: If the training ran with another cache.
    """
    recipe = PhotoRecipe(**row["recipe"])
    weights = weights_of(row, cache_folder)
    if not weights.exists():
        raise FileNotFoundError(f"{weights} is missing: train with the same --cache")
    return build(recipe, study_of(recipe, data, cache_folder).evaluation, row["seed"], weights)


def on_objects(
    row: Mapping[str, Any], data: Path, cache_folder: Path, pictures: Tensor, most: int
) -> dict[str, float]:
    """Measure how much of what each plan at test time keeps lies on the objects.

    Each token counts as one, shared equally among the patches that are in it: where ground merges
    and the object does not, more of the tokens are the object's.

    Args:
        row: A line of the log.
        data: Folder of Tiny ImageNet.
        cache_folder: Folder with the trained weights.
        pictures: The photographs to validate on [N, 3, side, side], uint8.
        most: How many of them, whose box has `LARGEST` of the patches or less, are measured.

    Returns:
        By plan the mean share of the tokens on the box over the box's share of the patches; 1 is
        what chance gives.

    Raises:
        FolderError: If no photograph has such a box.
    """
    model, patch = trained_model(row, data, cache_folder), PhotoRecipe(**row["recipe"]).patch
    patches = (SIDE // patch) ** 2
    boxes = [patches_in(box, SIDE, patch) for box in read_boxes(data)]
    chosen = [i for i, box in enumerate(boxes) if 0 < len(box) <= LARGEST * patches][:most]
    if not chosen:
        raise FolderError(f"{data} has no box of half of the patches or fewer")
    inside = torch.zeros(len(chosen), patches)
    for place, number in enumerate(chosen):
        inside[place, boxes[number]] = 1
    found = {}
    for name, plan in TEST_PLANS.items():
        shares: list[float] = []
        with evaluating(model, plan), elip_plugin.find_handle(model.model).trace() as trace:
            for part, own in zip(
                torch.split(pictures[chosen], CHUNK), torch.split(inside, CHUNK), strict=True
            ):
                model.model.encode_image(as_input(part))
                assert trace.sources is not None
                member = (trace.sources > 0).float()
                member = member / member.sum(dim=2, keepdim=True)
                shares += (member @ own[:, :, None]).mean(dim=(1, 2)).tolist()
        found[name] = mean(shares) / inside.mean().item()
    return found


def write_model(model: StudyModel, folder: Path) -> None:
    """Write a model config and weights of OpenCLIP.

    Args:
        model: The model.
        folder: Where to write `MODEL`.json and weights.pt.
    """
    weights = dict(model.model.state_dict())
    # OpenCLIP's tokenizer has more words than a model of few captions.
    words = torch.zeros(model.tokenizer.vocab_size, weights["token_embedding.weight"].shape[1])
    words[model.known] = weights["token_embedding.weight"]
    weights["token_embedding.weight"] = words
    config = config_of(model.recipe, len(words))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{MODEL}.json").write_text(json.dumps(config, indent=1) + "\n")
    torch.save(weights, folder / "weights.pt")
