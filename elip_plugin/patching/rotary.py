"""Rotary positions: tables that blocks are given at every call, and how queries and keys turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from elip_plugin.core.context import PositionOptions
from elip_plugin.core.merge import take_rows


@dataclass(frozen=True)
class Rotary:
    """How the queries and keys of patches are turned; those of the prefix are not.

    Attributes:
        option: Name of the option by which a block is given its table, [N, A / H] or, for tokens
            that differ by image, [B, 1, T - P, A / H].
        packed: Whether that is one table [N, 2 A / H] of sines and then cosines; else it is a pair
            of cosines and sines.
        halves: Whether a number is turned with that half a head away; else with its neighbor.
    """

    option: str
    packed: bool
    halves: bool

    def turn(self, y: Tensor, table: Any) -> Tensor:
        """Turn queries or keys [B, H, T, A / H] to the positions of a table."""
        sin, cos = table.chunk(2, dim=-1) if self.packed else (table[1], table[0])
        prefix = y.shape[2] - sin.shape[-2]
        rest = y[:, :, prefix:]
        if self.halves:
            first, second = rest.chunk(2, dim=-1)
            turned = torch.cat([-second, first], dim=-1)
        else:
            turned = torch.stack([-rest[..., 1::2], rest[..., ::2]], dim=-1).flatten(-2)
        return torch.cat([y[:, :, :prefix], (rest * cos + turned * sin).type_as(y)], dim=2)


def rotations(given: Mapping[str, Any], prefix: int) -> PositionOptions | None:
    """Return what blocks are called with; see `Calling.positions_for`.

    Tables are [N, A / H] or, for tokens that differ by image, [B, 1, N, A / H].
    """
    tables = {name: table for name, table in given.items() if table is not None}
    if not tables:
        return None

    def options(index: Tensor) -> Mapping[str, Any]:
        def rows_of(table: Tensor) -> Tensor:
            table = table.expand(index.shape[0], 1, *table.shape[-2:])
            return take_rows(table.squeeze(1), index).unsqueeze(1)

        made: dict[str, Any] = tree_map(rows_of, tables)
        return made

    return options
