"""Masks of image tokens where two towers of a model give different numbers of them.

LAVIS pairs the momentum encoder's tokens with the mask it made for the other tower's
(albef_pretrain.py:296, albef_nlvr.py:153), of which there may be fewer.
"""

from __future__ import annotations

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
