"""Guide a model's towers by the text of the samples it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from elip_plugin.core.guide import Reading, project_to_vision_width
from elip_plugin.errors import GuideError
from elip_plugin.hosts.lavis.text import TextCache, inner_bert, text_pass, tokenized_once
from elip_plugin.patching.pruner import Guide


@contextmanager
def guided_by_text(model: Any, samples: Mapping[str, Any]) -> Iterator[None]:
    """Guide a model's towers by the samples' text, where pruning wants it."""
    captions, pruner = samples.get("text_input"), model.elip
    if captions is None or not pruner.wants_guide(model.elip_training):
        yield
        return
    with ExitStack() as stack:
        tokenizer = model.tokenizer
        if model.own_text_pass:
            tokenizer = stack.enter_context(tokenized_once(model, captions))
        # A momentum encoder is guided by its own text encoder, if it is pruned at all.
        momentum = vars(getattr(model, "visual_encoder_m", None) or model).get("elip")
        for suffix, each in (("", pruner), ("_m", None if momentum is pruner else momentum)):
            if each is None or each.guide is not None:  # the user's own
                continue
            stack.enter_context(each.guided(_lazy_guide(model, suffix, tokenizer, captions)))
            if model.own_text_pass:
                stack.callback(model.elip_encoder(suffix).elip_cache.clear)
        yield


def _lazy_guide(model: Any, suffix: str, tokenizer: Callable[..., Any], captions: Any) -> Guide:
    """Return a guide of images_per_text * B that runs the text pass once it is needed.

    The text encoder is the model's, or with suffix "_m" the momentum encoder's.
    """
    # Where the pass is LAVIS' own it keeps its gradient, even if the tower is frozen.
    gradient = torch.is_grad_enabled() and model.own_text_pass and not suffix
    teach = torch.is_grad_enabled() and not suffix and model.elip.config.choice_loss > 0

    images = model.images_per_text

    def guide() -> Tensor | Reading:
        cache = model.elip_encoder(suffix).elip_cache if model.own_text_pass else TextCache()
        with torch.set_grad_enabled(gradient):
            if is_read_by_text(model):
                return reading_guide(
                    model, tokenizer, captions, suffix, cache, images=images, gradient=teach
                )
            cache.ids, cache.output, features = model.elip_encode(tokenizer, captions, suffix)
            made = text_guide(model, features, suffix)
        return made if images == 1 else torch.cat([made] * images)

    return guide


def is_read_by_text(model: Any) -> bool:
    """Whether a model's tower is pruned by how its text encoder reads it."""
    return model.elip.reducer.compares and hasattr(model, "text_encoder")


def reading_guide(
    model: Any,
    tokenizer: Any,
    captions: Any,
    suffix: str = "",
    cache: TextCache | None = None,
    *,
    images: int = 1,
    gradient: bool = False,
) -> Reading:
    """Compute what the cross-attentions of a text encoder compare the tower's tokens with.

    Their logits are linear in the tokens: the queries, mapped back to the tower's width by the
    keys' projection, give the same by one product each. Those of the first one depend on the text
    alone; those of the following ones, up to `ElipConfig.cross_attentions` in all, on what the
    layers before them read in the tokens.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        captions: Texts, B.
        suffix: "_m" for the momentum encoder.
        cache: Where the text pass of the layers before the first one is left, if there are any.
        images: Images of each text, in one batch after the other.
        gradient: Whether the guide has one.

    Returns:
        Guides per word and head [images * B, S * heads, D] of each, 0 for padding.
    """
    bert = model.elip_encoder(suffix)
    first = next(i for i, x in enumerate(bert.encoder.layer) if hasattr(x, "crossattention"))
    layers = bert.encoder.layer[first : first + model.elip.config.cross_attentions]
    tokens = model.elip_tokenize(tokenizer, captions)
    ids, mask = tokens.input_ids, tokens.attention_mask
    additive = bert.get_extended_attention_mask(mask, mask.shape, ids.device, False)
    output = text_pass(bert, tokens) if first else None
    if output is not None and cache is not None:
        cache.ids, cache.output = ids, output

    def guides(layer: Any, states: Tensor) -> Tensor:
        states = layer.attention(states, additive)[0]
        readers = _readers(layer.crossattention)[:images]
        found = [_queries_in_tower(reader, states, mask) for reader in readers]
        return torch.cat(found * (images // len(found)))

    def further(y: Tensor) -> Tensor:
        read, states = [], words
        for layer, following in pairwise(layers):
            given = _to_read(layer, y.chunk(images))
            # Detached: a backward pass through the reading of all tokens costs more than it gains.
            # (Under no_grad, autocast would keep its casts of these weights without gradient.)
            states = layer(states, additive, **given, mode="multimodal")[0].detach()
            read.append(guides(following, states))
        return torch.cat(read, dim=1)

    with torch.set_grad_enabled(gradient):
        if output is None:
            ids = ids.clone()
            ids[:, 0] = model.tokenizer.enc_token_id  # as LAVIS reads images (BLIP)
            words = bert.embeddings(ids)
        else:
            words = output.last_hidden_state
        return Reading(guides(layers[0], words), further if len(layers) > 1 else None)


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
    keys = attention.key.weight.unflatten(0, (heads, size)).to(queries.dtype)
    return torch.einsum("bshd,hdw->bshw", queries, keys).flatten(1, 2) / size**0.5


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
