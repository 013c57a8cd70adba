"""Guides from a text side that reads a tower by cross-attention: BLIP's encoder, a Q-Former."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from elip_plugin.core.guide import TextGuide, TextQueries, queries_in_tower
from elip_plugin.hosts.transformers.guide import weight_of

MASKED = -10000.0
"""What is added to an attention's logits for padding, as BERT does."""


@dataclass(frozen=True)
class Reader(TextGuide):
    """Guides a tower by texts; runs the text side once a forward asks for it.

    Attributes:
        model: The model.
        ids: Token ids of the texts [B, S].
        mask: Which are no padding [B, S].
    """

    model: Any
    ids: Tensor
    mask: Tensor

    def pooled(self) -> Tensor:
        """Compute a guide from the class token of the text alone [B, D]."""
        # With gradient and detached: autocast would keep casts of weights that it makes without.
        guide: Tensor = self.model.elip_project(self.class_token())
        return guide.detach()

    def queries(self, layers: int, gradient: bool) -> Tensor | TextQueries:
        """Compute what the cross-attentions compare the tower's tokens with.

        Their logits are linear in the tokens: the queries, mapped back to the tower's width by the
        keys' projection, give the same by one product each. Those of the first one depend on the
        text alone; those of the following ones on what the layers before them read in the tokens.

        Args:
            layers: How many cross-attentions read the tokens, from the first.
            gradient: Whether the guide has one.

        Returns:
            Guides per word, or query token, and head [B, S * heads, D]; 0 for padding.
        """
        states, mask = self.embed()
        used = self._layers_up_to(layers)
        additive = MASKED * (1 - mask[:, None, None].to(states.dtype))

        def guides(layer: Any, states: Tensor) -> Tensor:
            attended = _first(layer.attention(states, attention_mask=additive))
            cross = self.cross_attention(layer)
            shape = (cross.num_attention_heads, cross.attention_head_size)
            attended = attended[:, : self.readers()]
            queries = cross.query(attended).unflatten(-1, shape)
            queries = queries * mask[:, : self.readers(), None, None]
            return queries_in_tower(queries, weight_of(cross.key))

        def further(y: Tensor) -> Tensor:
            read, before = [], states
            for layer, following in pairwise(used):
                # Past the layer's own call, which may be checkpointed. Detached: a backward pass
                # through the reading of all tokens costs more than it gains.
                after = nn.Module.__call__(
                    layer,
                    before,
                    attention_mask=additive,
                    encoder_hidden_states=y.to(before.dtype),
                    **self.options(),
                )
                before = _first(after).detach()
                if _reads(following):
                    read.append(guides(following, before))
            return torch.cat(read, dim=1)

        first = guides(used[0], states)
        first = first if gradient else first.detach()
        return TextQueries(first, further if len(used) > 1 else None)

    def _layers_up_to(self, count: int) -> Sequence[Any]:
        """Return the layers up to the one with the last cross-attention of those asked for."""
        layers = self.layers()
        places = [i for i, layer in enumerate(layers) if _reads(layer)][:count]
        used: Sequence[Any] = layers[: places[-1] + 1]
        return used

    def layers(self) -> Any:
        """Return the layers of the text side; the first one reads the tower."""
        raise NotImplementedError

    def class_token(self) -> Tensor:
        """Encode the texts alone: their class tokens [B, text width]."""
        raise NotImplementedError

    def embed(self) -> tuple[Tensor, Tensor]:
        """Return what enters the first layer [B, S, text width], and its mask [B, S]."""
        raise NotImplementedError

    def readers(self) -> int | None:
        """Return how many of these tokens, from the first, read the tower; None for all."""
        return None

    def options(self) -> dict[str, Any]:
        """Return what else a layer is called with."""
        return {}

    def cross_attention(self, layer: Any) -> Any:
        """Return the cross-attention of a layer, which has the projections."""
        return layer.crossattention.self


class BlipReader(Reader):
    """A text encoder whose every layer reads the tower."""

    def layers(self) -> Any:
        """Return the layers; see `Reader`."""
        return self.model.text_encoder.encoder.layer

    def class_token(self) -> Tensor:
        """Encode the texts alone; see `Reader`."""
        encode = self.model.text_encoder
        output = encode(input_ids=self.ids, attention_mask=self.mask, return_dict=True)
        token: Tensor = output.last_hidden_state[:, 0]
        return token

    def embed(self) -> tuple[Tensor, Tensor]:
        """Embed the words; see `Reader`."""
        return self.model.text_encoder.embeddings(input_ids=self.ids), self.mask


class QFormerReader(Reader):
    """A Q-Former that attends to query tokens and text together; the query tokens read."""

    def layers(self) -> Any:
        """Return the layers; see `Reader`."""
        return self.model.qformer.encoder.layer

    def class_token(self) -> Tensor:
        """Encode the texts alone; see `Reader`."""
        options = {"attention_mask": self.mask, "return_dict": True}
        if hasattr(self.model.qformer, "embeddings"):
            output = self.model.qformer(input_ids=self.ids, **options)
        else:
            words = self.model.embeddings(input_ids=self.ids)
            output = self.model.qformer(query_embeds=words, query_length=0, **options)
        token: Tensor = output.last_hidden_state[:, 0]
        return token

    def embed(self) -> tuple[Tensor, Tensor]:
        """Embed query tokens and words; see `Reader`."""
        model, qformer = self.model, self.model.qformer
        query = model.query_tokens.expand(self.ids.shape[0], -1, -1)
        mask = torch.cat([torch.ones_like(query[..., 0], dtype=self.mask.dtype), self.mask], dim=1)
        if hasattr(qformer, "embeddings"):
            return qformer.embeddings(input_ids=self.ids, query_embeds=query), mask
        states = model.embeddings(input_ids=self.ids, query_embeds=query)
        return qformer.dropout(qformer.layernorm(states.to(qformer.layernorm.weight.dtype))), mask

    def readers(self) -> int:
        """Return the number of query tokens."""
        number: int = self.model.query_tokens.shape[1]
        return number

    def options(self) -> dict[str, Any]:
        """Say which tokens are query tokens."""
        return {"query_length": self.readers()}

    def cross_attention(self, layer: Any) -> Any:
        """Return the cross-attention of a layer; see `Reader`."""
        return layer.crossattention.attention


def _reads(layer: Any) -> bool:
    return hasattr(layer, "crossattention")


def _first(output: Any) -> Tensor:
    """Return the states of what a layer or an attention returns, a tuple in some versions."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states
