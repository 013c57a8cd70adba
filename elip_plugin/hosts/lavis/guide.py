"""Guide a model's towers by the text of the samples it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from elip_plugin.core.guide import project_to_vision_width
from elip_plugin.errors import GuideError
from elip_plugin.hosts.lavis.text import inner_bert, text_pass, tokenized_once
from elip_plugin.patching.pruner import Guide


@contextmanager
def guided_by_text(model: Any, samples: Mapping[str, Any]) -> Iterator[None]:
    """Guide an ALBEF or BLIP model's towers by the samples' text, where pruning wants it."""
    captions, pruner = samples.get("text_input"), model.elip
    if captions is None or not pruner.wants_guide(model.visual_encoder.training):
        yield
        return
    with ExitStack() as stack:
        tokenizer = model.tokenizer
        if model.own_text_pass:
            tokenizer = stack.enter_context(tokenized_once(model, captions))
        # A momentum encoder is guided by its own text encoder, if it is pruned at all.
        momentum = vars(getattr(model, "visual_encoder_m", model.visual_encoder)).get("elip")
        for suffix, each in (("", pruner), ("_m", None if momentum is pruner else momentum)):
            if each is None or each.guide is not None:  # the user's own
                continue
            # Where the pass is LAVIS' own it keeps its gradient, even if the tower is frozen.
            gradient = torch.is_grad_enabled() and model.own_text_pass and not suffix
            guide = _lazy_guide(model, suffix, tokenizer, captions, gradient)
            stack.enter_context(each.guided(guide))
            if model.own_text_pass:
                stack.callback(_bert(model, suffix).elip_cache.clear)
        yield


def _bert(model: Any, suffix: str) -> Any:
    """Return the text encoder, or with suffix "_m" that of the momentum encoder."""
    return inner_bert(getattr(model, f"text_encoder{suffix}"))


def _lazy_guide(
    model: Any, suffix: str, tokenizer: Callable[..., Any], captions: Any, gradient: bool
) -> Guide:
    """Return a guide [images_per_text * B, D] that runs the text pass once it is needed."""

    def guide() -> Tensor:
        options = {**model.tokens, "return_tensors": "pt"}
        if "truncation" in options:
            options["max_length"] = model.max_txt_len
        tokens, bert = tokenizer(captions, **options).to(model.device), _bert(model, suffix)
        with torch.set_grad_enabled(gradient):
            output = text_pass(bert, tokens)
        if model.own_text_pass:
            bert.elip_cache.ids, bert.elip_cache.output = tokens.input_ids, output
        made = guide_from_class_token(model, output.last_hidden_state[:, 0], suffix)
        return made if model.images_per_text == 1 else made.repeat(model.images_per_text, 1)

    return guide


@contextmanager
def guided_by_clip(model: Any, samples: Mapping[str, Any]) -> Iterator[None]:
    """Guide the tower of LAVIS' CLIP by the samples' text, where pruning wants it."""
    captions, pruner, cache = samples.get("text_input"), model.elip, model.elip_cache
    wanted = pruner.wants_guide(model.visual.training) and pruner.guide is None
    if captions is None or samples.get("image") is None or not wanted:
        yield
        return
    with tokenized_once(model, captions) as tokenizer:

        def guide() -> Tensor:
            tokens = tokenizer(captions)
            features = model.encode_text(tokens)
            cache.ids, cache.output = tokens, features
            return project_to_vision_width(features, [model.visual.proj.t()])

        try:
            with pruner.guided(guide):
                yield
        finally:
            cache.clear()


def guide_from_class_token(model: Any, token: Tensor, suffix: str = "") -> Tensor:
    """Turn the text's class token [B, text width] into a guide [B, D], detached."""
    vision_proj = getattr(model, f"vision_proj{suffix}", None)
    if token.shape[-1] == model.visual_encoder.embed_dim or vision_proj is None:
        return token.detach()
    with torch.no_grad():
        embedding = getattr(model, f"text_proj{suffix}")(token)
    return project_to_vision_width(embedding, [vision_proj.weight])


def text_guide(module: Any, features: Tensor) -> Tensor:
    """Turn text features, or a tower's ready guide, into a guide; see `Host.text_guide`."""
    is_clip = hasattr(module, "visual")
    if is_clip:
        expected = module.visual.proj.shape[1]
    elif hasattr(module, "text_encoder"):
        expected = inner_bert(module.text_encoder).config.hidden_size
    else:
        return features.detach()
    if features.ndim != 2 or features.shape[1] != expected:
        raise GuideError(
            f"text features have shape {tuple(features.shape)}, but this model guides by "
            f"(batch, {expected})"
        )
    if is_clip:
        return project_to_vision_width(features, [module.visual.proj.t()])
    return guide_from_class_token(module, features)
