"""Guiding a model's towers by the text of the samples it is given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from elip_plugin.core.guide import carry_back
from elip_plugin.hosts.lavis.text import (
    guide_from_class_token,
    inner_bert,
    lazy,
    text_pass,
    tokenized_once,
)
from elip_plugin.patching.pruner import Pruner


class Side(NamedTuple):
    """The student, or its momentum twin: a pruned tower and the text encoder that guides it."""

    pruner: Pruner
    bert: Any
    heads: tuple[Any, Any] | None


def sides(model: Any) -> list[Side]:
    """List the pruned sides of an ALBEF or BLIP model.

    Args:
        model: A patched model.

    Returns:
        The student, and its momentum twin if that is pruned.
    """
    found = []
    for suffix in ("", "_m"):
        tower = getattr(model, f"visual_encoder{suffix}", None)
        pruner = None if tower is None else vars(tower.blocks[0]).get("elip")
        if pruner is not None:
            heads = [getattr(model, name + suffix, None) for name in ("text_proj", "vision_proj")]
            bert = inner_bert(getattr(model, f"text_encoder{suffix}"))
            found.append(Side(pruner, bert, None if None in heads else (heads[0], heads[1])))
    return found


@contextmanager
def guided_by_text(model: Any, samples: Mapping[str, Any]) -> Iterator[None]:
    """Guide an ALBEF or BLIP model's towers by the samples' text, where pruning wants it.

    Args:
        model: A patched model of a class in `elip_plugin.hosts.lavis.models`.
        samples: As LAVIS' models take them; the text is under "text_input".

    Yields:
        Nothing.
    """
    captions = samples.get("text_input")
    pruner = vars(model.visual_encoder.blocks[0])["elip"]
    if captions is None or not pruner.wants_guide(model.visual_encoder.training):
        yield
        return
    with ExitStack() as stack:
        tokenizer = model.tokenizer
        if model.own_text_pass:
            tokenizer = stack.enter_context(tokenized_once(model, captions))
        for side, trained in zip(sides(model), (torch.is_grad_enabled(), False)):
            if side.pruner.has_guide:  # the user's own
                continue
            reader = _Reader(model, side, tokenizer, captions, trained)
            stack.enter_context(side.pruner.guided(lazy(reader.guide, model.images_per_text)))
            stack.callback(reader.forget)
        yield


class _Reader:
    """Runs the text pass of one side for one forward."""

    def __init__(
        self, model: Any, side: Side, tokenizer: Any, captions: Any, trained: bool
    ) -> None:
        self.model, self.side, self.tokenizer, self.captions = model, side, tokenizer, captions
        # Where the pass is LAVIS' own it keeps its gradient, even if the tower is frozen.
        self.gradient = trained and model.own_text_pass

    def guide(self) -> Tensor:
        model, side = self.model, self.side
        options = {**model.tokens, "return_tensors": "pt"}
        if "truncation" in options:
            options["max_length"] = model.max_txt_len
        tokens = self.tokenizer(self.captions, **options).to(model.device)
        with torch.set_grad_enabled(self.gradient):
            output = text_pass(side.bert, tokens)
        if model.own_text_pass:
            side.bert.elip.set(tokens.input_ids, output)
        token = output.last_hidden_state[:, 0]
        return guide_from_class_token(token, side.pruner.width, side.heads)

    def forget(self) -> None:
        if self.model.own_text_pass:
            self.side.bert.elip.clear()


@contextmanager
def guided_by_clip(model: Any, samples: Mapping[str, Any]) -> Iterator[None]:
    """Guide the tower of LAVIS' CLIP by the samples' text, where pruning wants it.

    Args:
        model: A patched `lavis.models.CLIP`.
        samples: As LAVIS' CLIP takes them.

    Yields:
        Nothing.
    """
    captions, pruner = samples.get("text_input"), model.visual.transformer.elip
    wanted = pruner.wants_guide(model.visual.training) and not pruner.has_guide
    if captions is None or samples.get("image") is None or not wanted:
        yield
        return
    with ExitStack() as stack:
        tokenizer = stack.enter_context(tokenized_once(model, captions))

        def guide() -> Tensor:
            tokens = tokenizer(captions)
            features = model.encode_text(tokens)
            model.elip.set(tokens, features)
            return carry_back(features, [model.visual.proj.t()])

        stack.enter_context(pruner.guided(lazy(guide)))
        stack.callback(model.elip.clear)
        yield
