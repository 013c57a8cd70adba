"""A stage with every number resolved, and what a block costs.

Shapes: B batch, T tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PlannedStage:
    """A stage with every number resolved.

    Attributes:
        block: The block before which tokens are pruned.
        lookahead: Blocks looked through, `block` included; the last gives one row only.
        keep: Tokens kept, K.
        tokens_in: Sequence length before the stage, prefix included.
        tokens_out: Sequence length after it, prefix and merged token included.
        until: The block before which the dropped tokens come back; None if they do not.
    """

    block: int
    lookahead: int
    keep: int
    tokens_in: int
    tokens_out: int
    until: int | None = None


def block_macs(tokens: int, width: int, mlp_ratio: float) -> float:
    """Count one block: its projections, its MLP, and the two products of attention.

    Args:
        tokens: Sequence length T.
        width: Tower width D.
        mlp_ratio: Hidden width of the MLP over D.

    Returns:
        Multiply-adds per image.

    Example:
        >>> block_macs(197, 768, 4.0)
        1453954560.0
    """
    return tokens * width * (width * (4 + 2 * mlp_ratio) + 2 * tokens)
