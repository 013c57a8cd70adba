"""Held-out retrieval for pre-training models, which LAVIS itself does not evaluate."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from elip_plugin.hosts.lavis.text import inner_bert, text_pass

TEXTS_PER_BATCH = 256


@torch.no_grad()
def contrastive_scores(model: Any, data_loader: Any) -> Any:
    """Score all images against all texts by the cosine of their embeddings.

    Args:
        model: An ALBEF or BLIP pre-training model.
        data_loader: Loader of a retrieval split, with its texts in `dataset.text`.

    Returns:
        Arrays of scores, images by texts and texts by images.
    """
    texts = data_loader.dataset.text
    batches = [texts[i : i + TEXTS_PER_BATCH] for i in range(0, len(texts), TEXTS_PER_BATCH)]
    text = torch.cat([embed_text(model, batch) for batch in batches])
    image = torch.cat([embed_image(model, samples["image"]) for samples in data_loader])
    scores = (image @ text.t()).cpu().numpy()
    return scores, scores.T


def embed_text(model: Any, captions: list[str]) -> Tensor:
    """Embed captions for retrieval.

    Args:
        model: An ALBEF or BLIP pre-training model.
        captions: The captions.

    Returns:
        Normalised features [B, E].
    """
    return F.normalize(model.text_proj(text_token(model, captions)), dim=-1)


def text_token(model: Any, captions: list[str]) -> Tensor:
    """Encode captions.

    Args:
        model: An ALBEF or BLIP pre-training model.
        captions: The captions.

    Returns:
        The text encoder's hidden state at [CLS], [B, width].
    """
    tokens = model.tokenizer(
        captions,
        padding="max_length",
        truncation=True,
        max_length=model.max_txt_len,
        return_tensors="pt",
    ).to(model.device)
    token: Tensor = text_pass(inner_bert(model.text_encoder), tokens).last_hidden_state[:, 0]
    return token


def embed_image(model: Any, images: Tensor) -> Tensor:
    """Embed images for retrieval.

    Args:
        model: An ALBEF or BLIP pre-training model.
        images: Images [B, 3, side, side].

    Returns:
        Normalised features [B, E].
    """
    tokens = model.visual_encoder.forward_features(images.to(model.device))
    return F.normalize(model.vision_proj(tokens[:, 0]), dim=-1)
