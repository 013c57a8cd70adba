"""Guide a model's towers by the text of the samples it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from elip_plugin.core.guide import (
    TextGuide,
    TextQueries,
    project_to_vision_width,
    queries_in_tower,
)
from elip_plugin.errors import GuideError
from elip_plugin.hosts.lavis.text import CachingTokenizer, TextPass, inner_bert, text_pass
from elip_plugin.patching.calls import thread


@contextmanager
def guided_by_text(model: Any, samples: Mapping[str, Any]) -> Iterator[None]:
    """Guide a model's towers by the samples' text, where pruning wants it."""
    captions, pruner = samples.get("text_input"), model.elip
    calls = {"": pruner.start(model, model.elip_training)}
    # A momentum encoder is guided by its own text encoder, if it is pruned at all.
    momentum = vars(getattr(model, "visual_encoder_m", model)).get("elip")
    if momentum is not None and momentum is not pruner:
        calls["_m"] = momentum.start(model, model.elip_training)
    calls = {suffix: call for suffix, call in calls.items() if call.needs_guide}
    if captions is None or not calls:
        yield
        return
    before, tokenizer = thread.innermost, model.tokenizer
    if model.own_text_pass:
        tokenizer = CachingTokenizer(tokenizer, captions, model.device)
        thread.innermost = (model, tokenizer, before)
    for suffix, each in calls.items():
        done = TextPass()
        if model.own_text_pass:
            thread.innermost = (model.elip_encoder(suffix), done, thread.innermost)
        guide = CaptionGuide(model, tokenizer, captions, suffix, done)
        guided = replace(each, guide=guide, needs_guide=False)
        thread.innermost = (each.pruner, guided, thread.innermost)
    try:
        yield
    finally:
        thread.innermost = before


@dataclass(frozen=True)
class CaptionGuide(TextGuide):
    """Guides a tower by captions; runs the text pass once a forward asks for it."""

    model: Any
    tokenizer: Callable[..., Any]
    captions: Any  # texts, B
    suffix: str = ""  # "_m" for the momentum encoder
    done: TextPass = field(default_factory=TextPass)  # left for the model's own pass

    def pooled(self) -> Tensor:
        """Compute a guide for each image [images_per_text * B, D]."""
        model, images = self.model, self.model.images_per_text
        with torch.set_grad_enabled(self._keeps_gradient()):
            encoded = model.elip_encode(self.tokenizer, self.captions, self.suffix)
            self.done.ids, self.done.output, features = encoded
            made = text_guide(model, features, self.suffix)
        return made if images == 1 else torch.cat([made] * images)

    def _keeps_gradient(self) -> bool:
        """Whether the text pass is LAVIS' own, which keeps its gradient beside a frozen tower."""
        return torch.is_grad_enabled() and self.model.own_text_pass and not self.suffix

    def queries(self, layers: int, gradient: bool) -> Tensor | TextQueries:
        """Compute what the cross-attentions of a text encoder compare the tower's tokens with.

        Their logits are linear in the tokens: the queries, mapped back to the tower's width by the
        keys' projection, give the same by one product each. Those of the first one depend on the
        text alone; those of the following ones on what the layers before them read in the tokens.

        Returns guides per word and head [images * B, S * heads, D] of each, 0 for padding; of a
        model that reads its tower otherwise one per image.
        """
        model = self.model
        if not hasattr(model, "text_encoder"):
            return self.pooled()
        gradient = gradient and torch.is_grad_enabled() and not self.suffix
        bert, images = model.elip_encoder(self.suffix), model.images_per_text
        first = next(i for i, x in enumerate(bert.encoder.layer) if hasattr(x, "crossattention"))
        readers = bert.encoder.layer[first : first + layers]
        tokens = model.elip_tokenize(self.tokenizer, self.captions)
        ids, mask = tokens.input_ids, tokens.attention_mask
        additive = bert.get_extended_attention_mask(mask, mask.shape, ids.device, False)

        def guides(layer: Any, states: Tensor) -> Tensor:
            states = layer.attention(states, additive)[0]
            attentions = _readers(layer.crossattention)[:images]
            found = [_queries_in_tower(attention, states, mask) for attention in attentions]
            return torch.cat(found * (images // len(found)))

        def further(y: Tensor) -> Tensor:
            read, states = [], words
            for layer, following in pairwise(readers):
                given = _to_read(layer, y.chunk(images))
                # Detached: a backward pass through the reading of all tokens costs more than it
                # gains. (Under no_grad, autocast would keep its casts of these weights without
                # gradient.)
                states = layer(states, additive, **given, mode="multimodal")[0].detach()
                read.append(guides(following, states))
            return torch.cat(read, dim=1)

        if first:
            with torch.set_grad_enabled(self._keeps_gradient()):
                self.done.ids, self.done.output = ids, text_pass(bert, tokens)
        with torch.set_grad_enabled(gradient):
            if first:
                words = self.done.output.last_hidden_state
            else:
                ids = ids.clone()
                ids[:, 0] = model.tokenizer.enc_token_id  # as LAVIS reads images (BLIP)
                words = bert.embeddings(ids)
            return TextQueries(guides(readers[0], words), further if len(readers) > 1 else None)


def is_read_by_text(model: Any) -> bool:
    """Whether a model's tower is pruned by how its text encoder reads it."""
    return model.elip.reducer.guide_kind == "queries" and hasattr(model, "text_encoder")


def _readers(cross: Any) -> list[Any]:
    """Return the attentions of a cross-attention: one, or one for each of two images (BLIP)."""
    return [cross.self] if hasattr(cross, "self") else [cross.self0, cross.self1]


def _to_read(layer: Any, images: Sequence[Tensor]) -> dict[str, Any]:
    """Return the image tokens as a layer takes them: of two images in a list, with their masks."""
    if len(images) == len(_readers(layer.crossattention)) == 1:
        return {"encoder_hidden_states": images[0]}
    given = [*images, *images][:2]
    return {"encoder_hidden_states": given, "encoder_attention_mask": [None, None]}


def _queries_in_tower(attention: Any, states: Tensor, mask: Tensor) -> Tensor:
    """Map the queries of texts [B, S, text width] to the tower's width [B, S * heads, D]."""
    heads, size = attention.num_attention_heads, attention.attention_head_size
    queries = attention.query(states).unflatten(-1, (heads, size)) * mask[:, :, None, None]
    return queries_in_tower(queries, attention.key.weight)


def text_guide(module: Any, features: Tensor, suffix: str = "") -> Tensor:
    """Turn text features, or a tower's ready guide, into a guide; see `Host.text_guide`.

    Features are CLIP's embeddings [B, E], or class tokens [B, text width] of the text encoder of
    ALBEF and BLIP; with suffix "_m" those of the momentum encoder. A model whose tower is pruned
    by how its text encoder reads it takes a ready guide.
    """
    if hasattr(module, "visual"):
        return project_to_vision_width(features, [module.visual.proj.t()])
    if is_read_by_text(module):
        return features.detach()
    if hasattr(module, "Qformer"):
        return qformer_guide(module, features)
    if not hasattr(module, "text_encoder"):
        return features.detach()
    expected = inner_bert(module.text_encoder).config.hidden_size
    if features.ndim != 2 or features.shape[1] != expected:
        raise GuideError(
            f"text features have shape {tuple(features.shape)}, but this model guides by "
            f"(batch, {expected})"
        )
    vision_proj = getattr(module, f"vision_proj{suffix}", None)
    if expected == module.visual_encoder.embed_dim or vision_proj is None:
        return features.detach()
    with torch.no_grad():
        embedding = getattr(module, f"text_proj{suffix}")(features)
    return project_to_vision_width(embedding, [vision_proj.weight])


def qformer_guide(model: Any, features: Tensor) -> Tensor:
    """Turn text tokens [B, Q-Former width] into a guide; see `Host.text_guide`.

    The map back to the tower is that of the values of the first cross-attention. Where texts and
    images share an embedding, tokens first go through that: by the text's projection, and back by
    the image's.
    """
    expected = model.Qformer.config.hidden_size
    if features.ndim != 2 or features.shape[1] != expected:
        raise GuideError(
            f"text features have shape {tuple(features.shape)}, but this model guides by "
            f"(batch, {expected})"
        )
    value = model.Qformer.bert.encoder.layer[0].crossattention.self.value.weight
    if not hasattr(model, "text_proj"):  # InstructBLIP
        return project_to_vision_width(features, [value])
    with torch.no_grad():
        embedding = model.text_proj(features)
    return project_to_vision_width(embedding, [model.vision_proj.weight, value])
