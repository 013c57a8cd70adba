"""Heads that find photographs by captions, trained on unpruned features of other photographs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.pretrained.features import Features

KINDS = {"cls": ("cls",), "both": ("cls", "mean")}
"""Image features by name: the class token's, and with the mean of the patches beside it."""

WIDTH, HIDDEN, EPOCHS, BATCH, RATE, DECAY, SMOOTHING = 512, 1024, 40, 256, 1e-3, 1.0, 0.1


def concatenated(features: Features, kind: str) -> Tensor:
    """Return the image features of a kind [N, D]."""
    return torch.cat([features[name] for name in KINDS[kind]], dim=1)


class Head(nn.Module):
    """A linear map of image features and an MLP on text features, both standardized."""

    def __init__(self, images: Tensor, texts: Tensor) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Dropout(0.1), nn.Linear(images.shape[1], WIDTH))
        self.text = nn.Sequential(
            nn.Dropout(0.15), nn.Linear(texts.shape[1], HIDDEN), nn.GELU(), nn.Dropout(0.15),
            nn.Linear(HIDDEN, WIDTH),
        )  # fmt: skip
        self.scale = nn.Parameter(torch.tensor(2.6))
        self.image_norm, self.text_norm = _Norm(images), _Norm(texts)

    def images(self, x: Tensor) -> Tensor:
        """Embed image features."""
        return nn.functional.normalize(self.image(self.image_norm(x)), dim=1)

    def texts(self, x: Tensor) -> Tensor:
        """Embed text features."""
        return nn.functional.normalize(self.text(self.text_norm(x)), dim=1)


class _Norm(nn.Module):
    """Standardizes features as those that it is made of."""

    mean: Tensor
    std: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", values.mean(0))
        self.register_buffer("std", values.std(0))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def train(images: Tensor, texts: Tensor, seed: int, kept: Path) -> Head:
    """Train a head, or read one that was trained.

    Args:
        images: Unpruned features [N, D].
        texts: Text features [N, 5, E].
        seed: Of weights, order and captions.
        kept: File of the weights.

    Returns:
        The head, in evaluation mode.
    """
    torch.manual_seed(seed)
    head = Head(images, texts.flatten(0, 1))
    if kept.exists():
        head.load_state_dict(torch.load(kept, weights_only=True))
        return head.eval()
    optimizer = torch.optim.AdamW(head.parameters(), lr=RATE, weight_decay=DECAY)
    steps = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * steps)
    labels = torch.arange(BATCH)
    for _ in range(EPOCHS):
        order = torch.randperm(len(images))
        for step in range(steps):
            chosen = order[step * BATCH : (step + 1) * BATCH]
            captions = texts[chosen, torch.randint(5, (BATCH,))]
            logits = head.scale.exp() * head.images(images[chosen]) @ head.texts(captions).T
            loss = sum(
                nn.functional.cross_entropy(each, labels, label_smoothing=SMOOTHING) / 2
                for each in (logits, logits.T)
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[union-attr]
            optimizer.step()
            schedule.step()
    kept.parent.mkdir(parents=True, exist_ok=True)
    torch.save(head.state_dict(), kept)
    return head.eval()


@torch.no_grad()
def ranks(head: Head, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    """Rank the right answers of a head: those of `ranks_of` its embeddings."""
    return ranks_of(head.images(images), head.texts(texts.flatten(0, 1)))


def ranks_of(images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    """Rank the right answers from 0: [N, 5] of captions to images, [N] of images to captions."""
    similar = texts @ images.T
    own = torch.arange(len(images)).repeat_interleave(5)
    mine = similar[torch.arange(len(texts)), own]
    to_image = (similar > mine[:, None]).sum(1).reshape(-1, 5)
    to_text = (mine.reshape(-1, 5).max(1).values[:, None] < similar.T).sum(1)
    return to_image, to_text
