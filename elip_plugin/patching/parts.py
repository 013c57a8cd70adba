"""A patched block as data: where a block of the usual parts has them.

A block of the usual parts computes y = x + output(attention(norm_1(x))), and y + mlp(norm_2(y)).
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import Any, ClassVar

from torch import Tensor, nn

from elip_plugin.core.blocks import PackedAttention
from elip_plugin.patching.blocks import PrunableBlock
from elip_plugin.patching.named import NamedAsReplaced, patched_class


@dataclass(frozen=True)
class Parts:
    """Where the parts of a block are: paths of attributes in it, such as "attn.qkv".

    Attributes:
        norm_1: What normalizes the tokens before the attention.
        projections: What makes queries, keys and values: the paths of a packed weight [3 A, D] and
            of its bias, or those of three modules. Empty where the block's class projects.
        heads: The number of heads H, or its path.
        output: What the attention's result, its heads joined [B, T, A], passes through before it is
            added to the tokens: modules or functions, and tensors, by which it is multiplied. An
            attribute that is None is passed by.
        norm_2: What normalizes the tokens before the MLP.
        mlp: What the normalized tokens pass through before the result is added to the tokens.
        query_norm: What normalizes the queries of each head; "" for nothing.
        key_norm: What normalizes the keys of each head; "" for nothing.
        stochastic_depth: What leaves out what is added at random; "" for nothing.

    Example:
        >>> of_torch = Parts(
        ...     "norm1",
        ...     ("self_attn.in_proj_weight", "self_attn.in_proj_bias"),
        ...     heads="self_attn.num_heads",
        ...     output=("self_attn.out_proj",),
        ...     norm_2="norm2",
        ...     mlp=("linear1", "activation", "linear2"),
        ... )  # of an nn.TransformerEncoderLayer
        >>> parts_block(nn.TransformerEncoderLayer, of_torch).replaces
        <class 'torch.nn.modules.transformer.TransformerEncoderLayer'>
    """

    norm_1: str
    projections: tuple[str, ...]
    heads: int | str
    output: tuple[str, ...]
    norm_2: str
    mlp: tuple[str, ...]
    query_norm: str = ""
    key_norm: str = ""
    stochastic_depth: str = ""


class PartsBlock(NamedAsReplaced, PrunableBlock):
    """A block whose parts are where `elip_parts` says; `parts_block` makes its subclasses."""

    elip_parts: ClassVar[Parts]

    @classmethod
    def body_for(cls, replaces: Any, *data: Any) -> dict[str, Any]:
        """Return where the parts are."""
        return {"elip_parts": data[0]}

    def attention_output(self, mixed: Tensor) -> Tensor:
        """Join the heads and project; see `BlockParts`."""
        x = mixed.transpose(1, 2).flatten(2)
        for path in self.elip_parts.output:
            part = attrgetter(path)(self)
            if part is not None:
                x = part * x if isinstance(part, Tensor) else part(x)
        return x

    def feed_forward(self, x: Tensor) -> Tensor:
        """Run the MLP; see `BlockParts`."""
        x = attrgetter(self.elip_parts.norm_2)(self)(x)
        # As above, and not one function for both: calls are what small models spend time on.
        for path in self.elip_parts.mlp:
            part = attrgetter(path)(self)
            if part is not None:
                x = part * x if isinstance(part, Tensor) else part(x)
        return x

    def stochastic_depth(self, added: Tensor) -> Tensor:
        """Apply stochastic depth; see `BlockParts`."""
        path = self.elip_parts.stochastic_depth
        return attrgetter(path)(self)(added) if path else added


class PackedBlock(PartsBlock):
    """A block whose queries, keys and values come from one projection."""

    def packed_attention(self) -> PackedAttention:
        """Return the attention's projections; see `PrunableBlock`."""
        parts, heads = self.elip_parts, self.elip_parts.heads
        norm, weight, bias = attrgetter(parts.norm_1, *parts.projections)(self)
        return PackedAttention(
            norm,
            weight,
            bias,
            heads if isinstance(heads, int) else attrgetter(heads)(self),
            attrgetter(parts.query_norm)(self) if parts.query_norm else None,
            attrgetter(parts.key_norm)(self) if parts.key_norm else None,
        )


class SeparateBlock(PartsBlock):
    """A block with a projection each for queries, keys and values."""

    def _project(self, which: int, x: Tensor, norm: str = "") -> Tensor:
        """Project normalized tokens [B, T, D] into heads [B, H, T, A / H]."""
        heads = self.elip_parts.heads
        heads = heads if isinstance(heads, int) else attrgetter(heads)(self)
        projected: Tensor = attrgetter(self.elip_parts.projections[which])(self)(x)
        y = projected.view(*x.shape[:2], heads, -1).transpose(1, 2)
        return attrgetter(norm)(self)(y) if norm else y

    def query_and_keys(self, query: Tensor, x: Tensor, **positions: Any) -> tuple[Tensor, Tensor]:
        """Normalize and project a query token and the tokens; see `BlockParts`."""
        parts = self.elip_parts
        norm = attrgetter(parts.norm_1)(self)
        q = self._project(0, norm(query), parts.query_norm)
        return q, self._project(1, norm(x), parts.key_norm)

    def queries_keys_values(self, x: Tensor, **positions: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Normalize and project tokens; see `BlockParts`."""
        parts = self.elip_parts
        x = attrgetter(parts.norm_1)(self)(x)
        q, k = self._project(0, x, parts.query_norm), self._project(1, x, parts.key_norm)
        return q, k, self._project(2, x)


def parts_block(block: type[nn.Module], parts: Parts) -> Any:
    """Make the patched class of a host's block whose parts are the usual ones.

    Args:
        block: The host's class.
        parts: Where its blocks have their parts.

    Returns:
        The class, for a `Swap`.
    """
    return patched_class(
        PackedBlock if len(parts.projections) == 2 else SeparateBlock, block, parts
    )
