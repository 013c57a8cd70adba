"""Guides from a text side that reads a tower by cross-attention: BLIP's encoder, a Q-Former."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from elip_plugin.core.guide import TextGuide, TextQueries
from elip_plugin.patching.cross_attention import queries_of

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
        """Compute what the cross-attentions compare the tower's tokens with; see `queries_of`."""
        states, mask = self.embed()
        additive = MASKED * (1 - mask[:, None, None].to(states.dtype))
        first = self.readers()

        def attend(layer: Any, states: Tensor) -> Tensor:
            return _first(layer.attention(states, attention_mask=additive))[:, :first]

        def read(layer: Any, states: Tensor, y: Tensor) -> Tensor:
            # Past the layer's own call, which may be checkpointed.
            after = nn.Module.__call__(
                layer,
                states,
                attention_mask=additive,
                encoder_hidden_states=y.to(states.dtype),
                **self.options(),
            )
            return _first(after)

        all_layers = self.layers()
        places = [i for i, layer in enumerate(all_layers) if self.crosses(layer)][:layers]
        made = queries_of(
            all_layers[: places[-1] + 1],
            states,
            mask[:, :first],
            attend=attend,
            crosses=self.crosses,
            read=read,
        )
        return made if gradient else made._replace(first=made.first.detach())

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

    def crosses(self, layer: Any) -> list[Any]:
        """List the cross-attentions of a layer, which have the projections."""
        return [layer.crossattention.self] if hasattr(layer, "crossattention") else []


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

    def crosses(self, layer: Any) -> list[Any]:
        """List the cross-attentions of a layer; see `Reader`."""
        return [layer.crossattention.attention] if hasattr(layer, "crossattention") else []


def _first(output: Any) -> Tensor:
    """Return the states of what a layer or an attention returns, a tuple in some versions."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states
