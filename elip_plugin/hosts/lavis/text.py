"""LAVIS' text encoders and tokenizers, which run once per forward.

LAVIS encodes the image first. The tower's guide runs the text pass as soon as pruning needs it,
and LAVIS' own text pass, which comes later, gets that output. No forward of LAVIS is copied, and
nothing is kept when a forward ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lavis.models.blip_models.nlvr_encoder import BertModel as NlvrBertModel
from lavis.models.med import BertModel, XBertEncoder
from torch import Tensor, nn

from elip_plugin.patching.calls import find
from elip_plugin.patching.swap import Patched


@dataclass
class TextPass:
    """The text pass of a call in progress, identified by the very tensor of its token ids."""

    ids: Tensor | None = None
    output: Any = None


class ElipBertModel(Patched, BertModel):
    """A text encoder that does not run the same text pass twice."""

    replaces = BertModel

    def forward(self, input_ids: Tensor | None = None, **options: Any) -> Any:
        """Encode text, alone or fused with image tokens."""
        states, mask = options.get("encoder_hidden_states"), options.get("encoder_attention_mask")
        if isinstance(states, Tensor) and mask is not None and mask.shape[1] != states.shape[1]:
            options["encoder_attention_mask"] = fit_mask(mask, states)
        elif isinstance(states, list) and mask is not None:
            options["encoder_attention_mask"] = [fit_mask(m, s) for m, s in zip(mask, states)]
        done = find(self, TextPass)
        if done is None or input_ids is None or done.ids is not input_ids:
            return super().forward(input_ids, **options)
        if options.get("mode") == "text":
            return done.output
        layers = self.config.num_hidden_layers
        if getattr(self.config, "fusion_layer", layers) >= layers:
            return super().forward(input_ids, **options)
        # The lower layers (ALBEF), which attend to text only, have run; those that attend to the
        # image are left.
        options["mode"] = "fusion"
        return super().forward(encoder_embeds=done.output.last_hidden_state, **options)


def fit_mask(mask: Tensor, states: Tensor) -> Tensor:
    """Fit the mask [B, T'] of image tokens to their number in `states` [B, T, D]: [B, T].

    LAVIS pairs the momentum encoder's tokens with the mask that it made for the other tower's
    (albef_pretrain.py:296, albef_nlvr.py:153), of which there may be fewer. It leaves no image
    token out, so the class token's value holds for all.
    """
    return mask if mask.shape[1] == states.shape[1] else mask[:, :1].expand(states.shape[:2])


class ElipXBertEncoder(ElipBertModel, XBertEncoder):
    """The same for the encoder whose `forward_text` and `forward_automask` bypass `forward`."""

    replaces = XBertEncoder

    def forward_text(self, tokenized_text: Any, **options: Any) -> Any:
        """Encode text alone."""
        done = text_pass_of(self, tokenized_text.input_ids)
        return super().forward_text(tokenized_text, **options) if done is None else done.output

    def forward_automask(self, tokenized_text: Any, visual_embeds: Tensor, **options: Any) -> Any:
        """Encode text fused with image tokens, none of them masked."""
        if text_pass_of(self, tokenized_text.input_ids) is None:
            return super().forward_automask(tokenized_text, visual_embeds, **options)
        return self(
            tokenized_text.input_ids,
            attention_mask=tokenized_text.attention_mask,
            encoder_hidden_states=visual_embeds,
            encoder_attention_mask=torch.ones_like(visual_embeds[..., 0], dtype=torch.long),
            return_dict=True,
        )


def text_pass_of(owner: Any, ids: Tensor | None) -> TextPass | None:
    """Return the text pass of these token ids that this call has made already, if it has."""
    done = find(owner, TextPass)
    return done if done is not None and ids is not None and done.ids is ids else None


TEXT_ENCODERS: dict[type, type[nn.Module]] = {
    BertModel: ElipBertModel,
    XBertEncoder: ElipXBertEncoder,
}
"""Text encoders that are patched; BLIP's NLVR2 encoder only gives a guide and stays as it is."""


def inner_bert(text_encoder: Any) -> Any:
    """Return the encoder inside a masked-language model."""
    encoders = (BertModel, NlvrBertModel)
    return text_encoder if isinstance(text_encoder, encoders) else text_encoder.bert


def text_pass(bert: Any, tokens: Any) -> Any:
    """Run a text encoder on text alone; its `last_hidden_state` is [B, S, text width]."""
    return bert(
        tokens.input_ids, attention_mask=tokens.attention_mask, return_dict=True, mode="text"
    )


class CachingTokenizer:
    """Takes a model's tokenizer's place during a call; tokenizes its captions once.

    It knows them by identity. Their tokens go to the device: when LAVIS moves them there, they stay
    the same tensors, which identify the text pass.
    """

    def __init__(self, tokenizer: Any, text: Sequence[str], device: Any) -> None:
        self.tokenizer, self.text, self.device = tokenizer, text, device
        self.options: dict[str, Any] | None = None
        self.tokens: Any = None

    def __call__(self, text: Sequence[str], **options: Any) -> Any:
        """Tokenize, or return what the same call returned before."""
        if text is not self.text:
            return self.tokenizer(text, **options)
        if self.options != options:
            self.tokens = self.tokenizer(text, **options).to(self.device)
            self.options = options
        return self.tokens

    def __getattr__(self, name: str) -> Any:
        if name == "tokenizer":  # a copy that has no attributes yet
            raise AttributeError(name)
        return getattr(self.tokenizer, name)


class TokenizesOnce:
    """A model whose tokenizer is, in a guided call, one that tokenizes its captions once."""

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        caching = find(self, CachingTokenizer)
        return self.__dict__["tokenizer"] if caching is None else caching

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        vars(self)["tokenizer"] = tokenizer
