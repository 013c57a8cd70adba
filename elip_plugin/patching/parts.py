"""A patched block as data: where a block of the usual parts has them.

A block of the usual parts computes y = x + output(attention(norm_1(x))), and y + mlp(norm_2(y)).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, ClassVar

from torch import Tensor, nn

from elip_plugin.core import blocks as modes
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.blocks import PrunableAttention, PrunableBlock, is_plain, sliced, unpacked
from elip_plugin.patching.named import patched_class
from elip_plugin.patching.rotary import Rotary
from elip_plugin.patching.wrappers import innermost


@dataclass(frozen=True)
class Parts:
    """Where the parts of a block are: paths of attributes in it, such as "attn.qkv".

    Attributes:
        norm_1: What normalizes the tokens before the attention; "" for nothing.
        attention: What attends, where it is an `nn.MultiheadAttention` or of `Tower.attentions`;
            the attributes up to `output` are its own then. "" where they are the following ones.
        projections: What makes queries, keys and values: one module for all three, or one for each.
        heads: The number of heads H, or its path.
        query_norm: What normalizes the queries of each head; "" for nothing.
        key_norm: What normalizes the keys of each head; "" for nothing.
        output: What the attention's result, its heads joined [B, T, A], passes through before it is
            added to the tokens: modules or functions, and tensors, by which it is multiplied. An
            attribute that is None is passed by.
        norm_2: What normalizes the tokens before the MLP; "" for nothing.
        mlp: What the normalized tokens pass through before the result is added to the tokens.
        stochastic_depth: What leaves out what is added at random; "" for nothing.
        rotary: How queries and keys are turned by their positions; None for not at all.

    Example:
        >>> of_torch = Parts(
        ...     norm_1="norm1",
        ...     attention="self_attn",
        ...     norm_2="norm2",
        ...     mlp=("linear1", "activation", "linear2"),
        ... )  # of an nn.TransformerEncoderLayer
        >>> parts_block(nn.TransformerEncoderLayer, of_torch).replaces
        <class 'torch.nn.modules.transformer.TransformerEncoderLayer'>
    """

    norm_1: str = ""
    attention: str = ""
    projections: tuple[str, ...] = ()
    heads: int | str = ""
    query_norm: str = ""
    key_norm: str = ""
    output: tuple[str, ...] = ()
    norm_2: str = ""
    mlp: tuple[str, ...] = ()
    stochastic_depth: str = ""
    rotary: Rotary | None = None


def through(block: Any, paths: Iterable[str], x: Tensor) -> Tensor:
    """Pass tokens through parts of a block; see `Parts.output`."""
    for path in paths:
        part = attrgetter(path)(block)
        if part is not None:
            x = part * x if isinstance(part, Tensor) else part(x)
    return x


class PartsBlock(PrunableBlock):
    """A block whose parts are where `elip_parts` says; `parts_block` makes its subclasses."""

    elip_parts: ClassVar[Parts]

    @classmethod
    def body_for(cls, replaces: Any, *data: Any) -> dict[str, Any]:
        """Return where the parts are."""
        return {"elip_parts": data[0]}

    def elip_normalize(self, x: Tensor) -> Tensor:
        """Normalize tokens before the attention."""
        path = self.elip_parts.norm_1
        return attrgetter(path)(self)(x) if path else x

    def elip_attend(
        self, x: Tensor, bias: Tensor | None = None, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Compute what the attention adds, and its keys; see `BlockParts`."""
        made, keys = self.elip_in_attention(modes.attend, x, bias=bias, **options)
        return through(self, self.elip_parts.output, made), keys

    def elip_query_and_keys(
        self, query: Tensor, x: Tensor, **positions: Any
    ) -> tuple[Tensor, Tensor]:
        """Normalize and project a query token and the tokens; see `BlockParts`."""
        return self.elip_project_query_and_keys(
            self.elip_normalize(query), self.elip_normalize(x), **positions
        )

    def elip_in_attention(self, run: Callable[..., Any], x: Tensor, **options: Any) -> Any:
        """Run a function of `AttentionParts` and normalized tokens, inside the attention's call.

        It returns two tensors, of which the second may be None.
        """
        return run(self, self.elip_normalize(x), **options)

    def elip_project(self, x: Tensor, **positions: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Project normalized tokens; see `AttentionParts`."""
        q, k, v = self.elip_project_heads(x)
        return self.elip_place(q, **positions), self.elip_place(k, **positions), v

    def elip_project_heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project normalized tokens, without their positions: three times [B, H, T, A / H]."""
        raise NotImplementedError(f"{type(self).__name__} does not project")

    def elip_project_query_and_keys(
        self, query: Tensor, x: Tensor, **positions: Any
    ) -> tuple[Tensor, Tensor]:
        """Project a normalized query token and normalized tokens; see `AttentionParts`."""
        return self.elip_project_heads(query)[0], self.elip_place(
            self.elip_project_heads(x)[1], **positions
        )

    def elip_place(self, y: Tensor, **positions: Any) -> Tensor:
        """Turn queries or keys [B, H, T, A / H] to their positions, if they have some."""
        rotary = self.elip_parts.rotary
        return y if rotary is None else rotary.turn(y, positions[rotary.option])

    def elip_project_output(self, joined: Tensor) -> Tensor:
        """Return the attention's result, whose projection is the first of `Parts.output`."""
        return joined

    def elip_feed_forward(self, x: Tensor) -> Tensor:
        """Run the MLP; see `BlockParts`."""
        parts = self.elip_parts
        x = attrgetter(parts.norm_2)(self)(x) if parts.norm_2 else x
        return through(self, parts.mlp, x)

    def elip_stochastic_depth(self, added: Tensor) -> Tensor:
        """Apply stochastic depth; see `BlockParts`."""
        path = self.elip_parts.stochastic_depth
        return attrgetter(path)(self)(added) if path else added

    def elip_number_of_heads(self) -> int:
        """Return the number of heads H."""
        heads = self.elip_parts.heads
        number: int = heads if isinstance(heads, int) else attrgetter(heads)(self)
        return number

    def elip_norm_heads(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Normalize each head's queries and keys, where the block does."""
        parts = self.elip_parts
        q = attrgetter(parts.query_norm)(self)(q) if parts.query_norm else q
        return q, attrgetter(parts.key_norm)(self)(k) if parts.key_norm else k


class PackedBlock(PartsBlock):
    """A block whose queries, keys and values come from one module."""

    def elip_project_heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project normalized tokens; see `PartsBlock`."""
        packed: Tensor = attrgetter(self.elip_parts.projections[0])(self)(x)
        q, k, v = unpacked(packed, self.elip_number_of_heads())
        return *self.elip_norm_heads(q, k), v

    def elip_project_query_and_keys(
        self, query: Tensor, x: Tensor, **positions: Any
    ) -> tuple[Tensor, Tensor]:
        """Project by rows of the weight, where nothing else projects; see `PartsBlock`."""
        parts = self.elip_parts
        layer = attrgetter(parts.projections[0])(self)
        if not is_plain(layer):
            return super().elip_project_query_and_keys(query, x, **positions)
        q, k = sliced(query, x, layer.weight, layer.bias, self.elip_number_of_heads())
        if parts.query_norm or parts.key_norm:
            q, k = self.elip_norm_heads(q, k)
        return q, self.elip_place(k, **positions) if positions else k


class SeparateBlock(PartsBlock):
    """A block with a projection each for queries, keys and values."""

    def elip_project_heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project normalized tokens; see `PartsBlock`."""
        q, k, v = (self.elip_project_by(which, x) for which in range(3))
        return *self.elip_norm_heads(q, k), v

    def elip_project_query_and_keys(
        self, query: Tensor, x: Tensor, **positions: Any
    ) -> tuple[Tensor, Tensor]:
        """Project by two of the modules; see `PartsBlock`."""
        q, k = self.elip_norm_heads(self.elip_project_by(0, query), self.elip_project_by(1, x))
        return q, self.elip_place(k, **positions)

    def elip_project_by(self, which: int, x: Tensor) -> Tensor:
        """Project normalized tokens by one of the modules."""
        projected: Tensor = attrgetter(self.elip_parts.projections[which])(self)(x)
        heads = self.elip_number_of_heads()
        return projected.view(*x.shape[:2], heads, projected.shape[2] // heads).transpose(1, 2)


class MultiheadBlock(PartsBlock):
    """A block with an attention of raw weights, whose modes run inside of the attention's call."""

    def elip_query_and_keys(
        self, query: Tensor, x: Tensor, **positions: Any
    ) -> tuple[Tensor, Tensor]:
        """Normalize and project a query token and the tokens; see `BlockParts`."""
        norm, attention = attrgetter(self.elip_parts.norm_1, self.elip_parts.attention)(self)
        query, x, own = norm(query), norm(x), vars(attention)
        if not isinstance(attention, PrunableAttention):
            refuse_exchanged(attention, self.elip_parts.attention)
        elif not (own["_forward_hooks"] or own["_forward_pre_hooks"] or "forward" in own):
            # Nothing acts around its call, which costs more than what is done in it.
            weight, bias = attention.in_proj_weight, attention.in_proj_bias
            return sliced(query, x, weight, bias, attention.num_heads)
        q, k = attention(x, run=PrunableAttention.elip_project_query_and_keys, token=query)
        return q, k

    def elip_in_attention(self, run: Callable[..., Any], x: Tensor, **options: Any) -> Any:
        """Run a function inside the attention's own call; see `PartsBlock`."""
        norm, attention = attrgetter(self.elip_parts.norm_1, self.elip_parts.attention)(self)
        if not isinstance(attention, PrunableAttention):
            refuse_exchanged(attention, self.elip_parts.attention)
        return attention(norm(x), run=run, **options)


def refuse_exchanged(attention: Any, path: str) -> None:
    """Refuse an attention that was exchanged, but for what adapters are wrapped around."""
    if not isinstance(innermost(attention), PrunableAttention):
        raise UnsupportedModelError(
            f"{path!r} of a pruned block is a {type(attention).__name__}, and was another "
            "attention when ELIP was applied: exchange it before"
        )


def parts_block(block: type[nn.Module], parts: Parts) -> Any:
    """Make the patched class of a host's block whose parts are the usual ones.

    Args:
        block: The host's class.
        parts: Where its blocks have their parts.

    Returns:
        The class, for `Tower.parts`.
    """
    kind: Any = PackedBlock if len(parts.projections) == 1 else SeparateBlock
    return patched_class(MultiheadBlock if parts.attention else kind, block, parts)
