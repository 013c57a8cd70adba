"""Masks of image tokens where two towers of a model give different numbers of them.

LAVIS pairs the momentum encoder's tokens with the mask it made for the other tower's
(albef_pretrain.py:296, albef_nlvr.py:153), of which there may be fewer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def fit_mask(mask: Tensor, states: Tensor) -> Tensor:
    """Fit the mask [B, T'] of image tokens to their number.

    Args:
        mask: The mask; LAVIS leaves no image token out, so the class token's value holds for all.
        states: The tokens [B, T, D].

    Returns:
        The mask [B, T], itself where it fits.
    """
    return mask if mask.shape[1] == states.shape[1] else mask[:, :1].expand(states.shape[:2])


def with_fitting_masks(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a text encoder's call with masks that fit its image tokens."""
    states, mask = options.get("encoder_hidden_states"), options.get("encoder_attention_mask")
    if states is None or mask is None:
        return dict(options)
    several = isinstance(states, list)  # two images (NLVR2)
    fitting = [fit_mask(m, s) for m, s in zip(mask, states)] if several else fit_mask(mask, states)
    return {**options, "encoder_attention_mask": fitting}
