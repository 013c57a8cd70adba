"""Guide a model's towers by the text of the samples it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from elip_plugin.core.guide import TextGuide, TextQueries, project_to_vision_width
from elip_plugin.errors import GuideError
from elip_plugin.hosts.lavis.text import CachingTokenizer, TextPass, inner_bert, text_pass
from elip_plugin.patching.calls import opened
from elip_plugin.patching.cross_attention import queries_of
from elip_plugin.patching.maps import linear_map


@contextmanager
def guided_by_text(model: Any, samples: Mapping[str, Any]) -> Iterator[None]:
    """Guide a model's towers by the samples' text, where pruning wants it."""
    captions, pruners = samples.get("text_input"), {"": model.elip}
    # A momentum encoder is guided by its own text encoder, if it is pruned at all.
    momentum = vars(getattr(model, "visual_encoder_m", model)).get("elip")
    if momentum is not None and momentum is not model.elip:
        pruners["_m"] = momentum
    training = (model.visual if hasattr(model, "visual") else model.visual_encoder).training
    forwards = {name: each.decide(model, training) for name, each in pruners.items()}
    forwards = {name: each for name, each in forwards.items() if each.needs_guide}
    if captions is None or not forwards:
        yield
        return
    tokenizer = model.tokenizer
    with ExitStack() as stack:
        if model.own_text_pass:
            tokenizer = CachingTokenizer(tokenizer, captions, model.device)
            stack.enter_context(opened(model, tokenizer))
        for suffix, forward in forwards.items():
            done = TextPass()
            if model.own_text_pass:
                stack.enter_context(opened(model.elip_encoder(suffix), done))
            guide = CaptionGuide(model, tokenizer, captions, suffix, done)
            stack.enter_context(pruners[suffix].guided(forward, guide))
        yield


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
        """Compute what the cross-attentions compare the tower's tokens with; see `queries_of`.

        Of a model that reads its tower otherwise, one guide per image.
        """
        model = self.model
        if not hasattr(model, "text_encoder"):
            return self.pooled()
        gradient = gradient and torch.is_grad_enabled() and not self.suffix
        bert, images = model.elip_encoder(self.suffix), model.images_per_text
        first = next(i for i, layer in enumerate(bert.encoder.layer) if _crosses(layer))
        tokens = model.elip_tokenize(self.tokenizer, self.captions)
        ids, mask = tokens.input_ids, tokens.attention_mask
        additive = bert.get_extended_attention_mask(mask, mask.shape, ids.device, False)

        def read(layer: Any, states: Tensor, y: Tensor) -> Any:
            given = _to_read(layer, y.chunk(images))
            return layer(states, additive, **given, mode="multimodal")[0]

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
            return queries_of(
                bert.encoder.layer[first : first + layers],
                words,
                mask,
                attend=lambda layer, states: layer.attention(states, additive)[0],
                crosses=_crosses,
                read=read,
                images=images,
            )


def is_read_by_text(model: Any) -> bool:
    """Whether a model's tower is pruned by how its text encoder reads it."""
    return model.elip.reducer.text_alone and hasattr(model, "text_encoder")


def _crosses(layer: Any) -> list[Any]:
    """Return a layer's cross-attentions: one, or one for each of two images (BLIP)."""
    if not hasattr(layer, "crossattention"):
        return []
    cross = layer.crossattention
    return [cross.self] if hasattr(cross, "self") else [cross.self0, cross.self1]


def _to_read(layer: Any, images: Sequence[Tensor]) -> dict[str, Any]:
    """Return the image tokens as a layer takes them: of two images in a list, with their masks."""
    if len(images) == len(_crosses(layer)) == 1:
        return {"encoder_hidden_states": images[0]}
    given = [*images, *images][:2]
    return {"encoder_hidden_states": given, "encoder_attention_mask": [None, None]}


def text_guide(module: Any, features: Tensor, suffix: str = "") -> Tensor:
    """Turn text features, or a tower's ready guide, into a guide; see `Host.text_guide`.

    Features are CLIP's embeddings [B, E], or class tokens [B, text width] of the text encoder of
    ALBEF and BLIP; with suffix "_m" those of the momentum encoder. A model whose tower is pruned
    by how its text encoder reads it takes a ready guide.
    """
    if hasattr(module, "visual"):
        return project_to_vision_width(features, [module.visual.proj.t()])
    if is_read_by_text(module) or not hasattr(module, "text_encoder"):
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
    return project_to_vision_width(embedding, [linear_map(vision_proj)])
