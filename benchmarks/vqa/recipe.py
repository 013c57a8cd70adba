"""How the models of the study are built and trained; the same for all variants."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.data.scenes import SIZES

EMOJIS, PHOTOGRAPHS = "emojis", "photographs"
PATCHES = {EMOJIS: {4: 8, 9: 12, 16: 8}, PHOTOGRAPHS: {4: 8, 9: 8}}
"""Side of a patch in pixels by the number of objects: an emoji covers 16, 4 and 4 patches, a
photograph 16 and 9."""

NAMING = {EMOJIS: 0, PHOTOGRAPHS: 3000}
"""Steps of `VqaRecipe.naming`."""

KINDS = {EMOJIS: ("colour", "place", "number"), PHOTOGRAPHS: ("colour", "place", "neighbour")}
"""Kinds of question about each."""

HEADS = {"vision": 2, "text": 4}

TRANSFORMERS = "transformers_blip_vqa"
"""In place of an arch of LAVIS: BLIP in transformers, trained by its Trainer."""

LAVIS = ("blip_vqa", "albef_vqa")
ARCHS = (*LAVIS, TRANSFORMERS)


@dataclass(frozen=True)
class VqaRecipe:
    """A training of a small model that answers questions, on scenes.

    Attributes:
        regime: "scratch", from random weights; "continued", from the weights that an unpruned
            training by `BASE` with the same seed ends with.
        arch: LAVIS' arch: "blip_vqa" or "albef_vqa"; or `TRANSFORMERS`.
        source: What the pictures show: `EMOJIS`, or `PHOTOGRAPHS` in frames.
        naming: Steps in which the tower learns to name what is in each cell, before any question;
            where others continue from that training, the tower then keeps its weights in it.
        objects: Objects per picture: 4, 9 or, of emojis, 16.
        kinds: Kinds of question, joined by commas.
        names: Names that occur in the scenes.
        steps: Steps of an unpruned training.
        batch: Questions per step.
        width: Width of tower and text side.
        depth: Blocks of the tower.
        layers: Layers of the question's encoder, and of the answer's decoder.
        learning_rate: Highest learning rate; it rises linearly and falls as a cosine.
        warmup: Share of the training over which the learning rate rises.
        weight_decay: AdamW's.
        clip: Norm to which gradients are clipped.
    """

    regime: str = "scratch"
    arch: str = "blip_vqa"
    source: str = EMOJIS
    naming: int = 0
    objects: int = 9
    kinds: str = "colour"
    names: int = 16
    steps: int = 1500
    batch: int = 64
    width: int = 64
    depth: int = 4
    layers: int = 2
    learning_rate: float = 2e-3
    warmup: float = 0.1
    weight_decay: float = 0.05
    clip: float = 1.0

    @property
    def size(self) -> int:
        """Side of a picture in pixels."""
        return SIZES[self.objects]

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return PATCHES[self.source][self.objects]

    def rate(self, step: int, steps: int) -> float:
        """Compute the learning rate.

        Args:
            step: The step, from 0.
            steps: Steps of the whole training.

        Returns:
            The learning rate of that step.
        """
        rise = min(1.0, (step + 1) / max(1.0, self.warmup * steps))
        return self.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * step / steps))

    def optimizer(self, weights: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Build the optimizer of some weights."""
        trained = [weight for weight in weights if weight.requires_grad]
        betas, decay = (0.9, 0.98), self.weight_decay
        return torch.optim.AdamW(trained, self.learning_rate, betas, weight_decay=decay)

    @property
    def bert(self) -> dict[str, Any]:
        """The sizes of the question's encoder, and of the answer's decoder."""
        return {
            "hidden_size": self.width,
            "intermediate_size": 4 * self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": HEADS["text"],
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "max_position_embeddings": 40,
            # BERT's own 0.02 is for a width of 768.
            "initializer_range": 0.1,
        }

    def section(self, vocabulary: Path) -> dict[str, Any]:
        """Write LAVIS' model section, with nothing to fetch.

        Args:
            vocabulary: The tokenizer's words, one per line.

        Returns:
            The section, unpruned; `elip` may be added.
        """
        albef, bert = self.arch.startswith("albef"), self.bert
        section = {
            "arch": self.arch,
            "load_finetuned": False,
            "pretrained": None,
            "finetuned": None,
            "vit_type": "base",
            "vit_grad_ckpt": False,
            "vit_ckpt_layer": 0,
            "vit_drop_path_rate": 0.0,
            "image_size": self.size,
            "med_config_path": f"configs/models/med_config{'_albef' if albef else ''}.json",
            "tokenizer": str(vocabulary),
            "init": "random",
            "vit": {
                "width": self.width,
                "depth": self.depth,
                "heads": HEADS["vision"],
                "patch_size": self.patch,
            },
            "bert": {**bert, "fusion_layer": self.layers // 2} if albef else bert,
        }
        if albef:  # LAVIS' arch cannot train without its momentum encoder
            section.update(use_distill=True, momentum=0.995, alpha=0.0, max_txt_len=25)
        return section


BASE_STEPS = {EMOJIS: 2500, PHOTOGRAPHS: 4000}
CONTINUED = {"regime": "continued", "steps": 700, "learning_rate": 1e-3}
"""Continued training goes on from `BASE_STEPS` unpruned steps of the scratch recipe."""
