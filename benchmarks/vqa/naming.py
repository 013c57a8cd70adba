"""The tower's first training: to name what is in each cell of the pictures.

BLIP's and ALBEF's towers begin as classifiers of ImageNet. Questions alone teach a small tower
next to nothing of photographs, which a class name per photograph does within minutes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.data.scene_files import Scenes
from benchmarks.photos.augment import shift
from benchmarks.photos.mosaics import FRAME
from benchmarks.vqa.recipe import PHOTOGRAPHS, VqaRecipe


def learn_names(model: Any, recipe: VqaRecipe, scenes: Scenes, seed: int) -> None:
    """Train a model's tower in place for `recipe.naming` steps; nothing for 0.

    A linear layer on the mean of each cell's tokens says what is shown there, by cross-entropy;
    it is dropped afterwards. Photographs are shifted and mirrored inside their frames.

    Args:
        model: LAVIS' model.
        recipe: How to train.
        scenes: What to train on.
        seed: Decides the order, and the changes of the photographs.
    """
    if not recipe.naming:
        return
    shown = [[thing for thing, *_ in row["objects"]] for row in scenes.rows]
    names = sorted({name for row in shown for name in row})
    own = torch.tensor([[names.index(name) for name in row] for row in shown])
    torch.manual_seed(seed)
    head, tower = nn.Linear(recipe.width, len(names)), model.visual_encoder.train()
    weights = [*tower.parameters(), *head.parameters()]
    optimizer = recipe.optimizer(weights)
    generator = torch.Generator().manual_seed(seed)
    for step in range(recipe.naming):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step, recipe.naming)
        chosen = torch.randint(len(own), (recipe.batch,))
        images = torch.from_numpy(scenes.pictures[chosen]).permute(0, 3, 1, 2).float() / 127.5 - 1
        if recipe.source == PHOTOGRAPHS:
            images = _change(images, recipe, generator)
        logits = head(_cells(tower.forward_features(images)[:, 1:], recipe))
        loss = F.cross_entropy(logits.flatten(0, 1), own[chosen].flatten())
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(weights, recipe.clip)
        optimizer.step()


def _change(images: Tensor, recipe: VqaRecipe, generator: torch.Generator) -> Tensor:
    """Shift and mirror the photograph in each cell of mosaics [B, 3, side, side]."""
    changed, cell = images.clone(), recipe.size // math.isqrt(recipe.objects)
    inside = cell - 2 * FRAME
    for top in range(FRAME, recipe.size, cell):
        for left in range(FRAME, recipe.size, cell):
            place = (..., slice(top, top + inside), slice(left, left + inside))
            changed[place] = shift(images[place], generator)
    return changed


def _cells(tokens: Tensor, recipe: VqaRecipe) -> Tensor:
    """Average the patches [B, N, D] of each cell [B, objects, D]."""
    side = math.isqrt(recipe.objects)
    patches = recipe.size // recipe.patch // side
    grid = tokens.reshape(len(tokens), side, patches, side, patches, -1)
    return grid.mean(dim=(2, 4)).flatten(1, 2)
