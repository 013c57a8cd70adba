"""The text guide of LAVIS' models: asked for by the tower, computed once per forward.

LAVIS encodes the image first. The tower's first stage asks for its guide, which runs the text
pass there and then; when LAVIS comes to its own text pass, it gets what is there already. No
forward of LAVIS is copied, and nothing is kept when a forward ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from lavis.models.blip_models.nlvr_encoder import BertModel as NlvrBertModel
from lavis.models.med import BertModel, XBertEncoder
from torch import Tensor, nn

from elip_plugin.core.guide import carry_back
from elip_plugin.patching.pruner import Guide
from elip_plugin.patching.swap import Patched


class TextMemo:
    """The text pass of the forward in progress, known by the very tensor of its token ids."""

    def __init__(self) -> None:
        self.clear()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the text pass out: a copy or a pickle starts clean."""
        return {"ids": None, "output": None}

    def set(self, ids: Tensor, output: Any) -> None:
        """Remember a text pass.

        Args:
            ids: Its token ids [B, S].
            output: What the text encoder returned.
        """
        self.ids: Tensor | None = ids
        self.output = output

    def get(self, ids: Tensor | None) -> Any:
        """Recall the text pass of these token ids.

        Args:
            ids: Token ids; only the tensor that was remembered matches.

        Returns:
            The text encoder's output, or None.
        """
        return self.output if ids is not None and ids is self.ids else None

    def clear(self) -> None:
        """Forget everything."""
        self.ids, self.output = None, None


class ElipBertModel(Patched, BertModel):
    """A text encoder that does not run the same text pass twice."""

    replaces = BertModel

    if TYPE_CHECKING:
        elip: TextMemo

    def forward(self, input_ids: Tensor | None = None, **options: Any) -> Any:
        """Encode text, alone or fused with image tokens.

        Args:
            input_ids: Token ids [B, S].
            **options: As in LAVIS.

        Returns:
            What LAVIS' forward returns.
        """
        _fit_masks(options)
        known = self.elip.get(input_ids)
        if known is None:
            return super().forward(input_ids, **options)
        if options.get("mode") == "text":
            return known
        if not _has_text_layers(self):
            return super().forward(input_ids, **options)
        # The lower layers have run: only those that look at the image are left.
        options["mode"] = "fusion"
        return super().forward(encoder_embeds=known.last_hidden_state, **options)


class ElipXBertEncoder(ElipBertModel, XBertEncoder):
    """The same for the encoder whose `forward_text` and `forward_automask` go round `forward`."""

    replaces = XBertEncoder

    def forward_text(self, tokenized_text: Any, **options: Any) -> Any:
        """Encode text alone.

        Args:
            tokenized_text: Tokens, as the tokenizer gives them.
            **options: As in LAVIS.

        Returns:
            What LAVIS' method returns.
        """
        known = self.elip.get(tokenized_text.input_ids)
        return known if known is not None else super().forward_text(tokenized_text, **options)

    def forward_automask(self, tokenized_text: Any, visual_embeds: Tensor, **options: Any) -> Any:
        """Encode text fused with image tokens, none of them masked.

        Args:
            tokenized_text: Tokens, as the tokenizer gives them.
            visual_embeds: Image tokens [B, T, D].
            **options: As in LAVIS.

        Returns:
            What LAVIS' method returns.
        """
        ids = tokenized_text.input_ids
        if self.elip.get(ids) is None:
            return super().forward_automask(tokenized_text, visual_embeds, **options)
        return self(
            ids,
            attention_mask=tokenized_text.attention_mask,
            encoder_hidden_states=visual_embeds,
            encoder_attention_mask=torch.ones_like(visual_embeds[..., 0], dtype=torch.long),
            return_dict=True,
        )


TEXT_ENCODERS: dict[type, type[nn.Module]] = {
    BertModel: ElipBertModel,
    XBertEncoder: ElipXBertEncoder,
}
"""Text encoders that take part; BLIP's NLVR2 encoder only gives a guide and stays as it is."""


def _has_text_layers(bert: Any) -> bool:
    """Whether the lower layers see text only (ALBEF), so that they are the text pass."""
    return getattr(bert.config, "fusion_layer", bert.config.num_hidden_layers) < (
        bert.config.num_hidden_layers
    )


def _fit_masks(options: dict[str, Any]) -> None:
    """Fit the mask of the image tokens to their number.

    LAVIS gives the twin's tokens the mask it made for the student's, of which there may be
    fewer. Its masks leave no image token out, so the class token's value holds for all.
    """
    states, masks = options.get("encoder_hidden_states"), options.get("encoder_attention_mask")
    if isinstance(states, list) and isinstance(masks, list):
        pairs = zip(masks, states)
        options["encoder_attention_mask"] = [_fit_mask(mask, state) for mask, state in pairs]
    elif states is not None and masks is not None:
        options["encoder_attention_mask"] = _fit_mask(masks, states)


def _fit_mask(mask: Tensor, states: Tensor) -> Tensor:
    return mask if mask.shape[1] == states.shape[1] else mask[:, :1].expand(states.shape[:2])


def inner_bert(text_encoder: Any) -> Any:
    """Find the encoder inside a masked-language model.

    Args:
        text_encoder: A model's `text_encoder`.

    Returns:
        Its `bert`, or itself.
    """
    return (
        text_encoder
        if isinstance(text_encoder, (BertModel, NlvrBertModel))
        else (text_encoder.bert)
    )


class TokenizedOnce:
    """Stands in for a model's tokenizer during a forward; tokenizes its captions once.

    Args:
        tokenizer: The model's tokenizer.
        text: The captions of this forward; recognised by identity.
        device: Where their tokens go; when LAVIS moves them there, they stay the same tensors,
            by which the text pass is known.
    """

    def __init__(self, tokenizer: Any, text: Sequence[str], device: Any) -> None:
        self.tokenizer, self.text, self.device = tokenizer, text, device
        self.options: dict[str, Any] | None = None
        self.tokens: Any = None

    def __call__(self, text: Sequence[str], **options: Any) -> Any:
        """Tokenize, or give what the same call gave before.

        Args:
            text: Captions.
            **options: As for the tokenizer.

        Returns:
            The tokens.
        """
        if text is not self.text:
            return self.tokenizer(text, **options)
        if self.options != options:
            self.tokens = self.tokenizer(text, **options).to(self.device)
            self.options = options
        return self.tokens

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


@contextmanager
def tokenized_once(model: Any, text: Sequence[str]) -> Iterator[TokenizedOnce]:
    """Let a model tokenize its captions once inside the context.

    Args:
        model: A model with a `tokenizer`.
        text: The captions.

    Yields:
        What stands in for the tokenizer.
    """
    tokenizer = model.tokenizer
    model.tokenizer = once = TokenizedOnce(tokenizer, text, model.device)
    try:
        yield once
    finally:
        model.tokenizer = tokenizer


def lazy(compute: Callable[[], Tensor], copies: int = 1) -> Guide:
    """Make a guide that is computed when it is first asked for.

    Args:
        compute: Gives the guide [B, D].
        copies: How many images each text guides, one batch of images after the other.

    Returns:
        A function that gives the guide [copies * B, D], detached, always the same.
    """
    made: list[Tensor] = []

    def guide() -> Tensor:
        if not made:
            made.append(compute().detach().repeat(copies, 1))
        return made[0]

    return guide


def text_pass(bert: Any, tokens: Any) -> Any:
    """Run a text encoder on text alone.

    Args:
        bert: The text encoder.
        tokens: Tokens, as the tokenizer gives them.

    Returns:
        Its output; `last_hidden_state` is [B, S, text width].
    """
    return bert(
        tokens.input_ids, attention_mask=tokens.attention_mask, return_dict=True, mode="text"
    )


def guide_from_class_token(token: Tensor, width: int, heads: tuple[Any, Any] | None) -> Tensor:
    """Turn the text's class token into a guide.

    Args:
        token: The text encoder's class token [B, text width].
        width: Tower width D.
        heads: The projections of text and image to the embedding; needed where the widths
            differ.

    Returns:
        The token itself where the widths agree, else its embedding carried back [B, D].
    """
    if token.shape[-1] == width or heads is None:
        return token.detach()
    text_proj, vision_proj = heads
    with torch.no_grad():
        return carry_back(text_proj(token), [vision_proj.weight])
