"""BLIP, BLIP-2 and InstructBLIP: what guides their towers, and where it enters.

As in LAVIS, a question or an instruction guides where it is an input at test time, a caption where
images and texts are matched, and the image alone where the text is the answer.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn

from elip_plugin.core.guide import project_to_vision_width
from elip_plugin.errors import ConfigError, ElipError, GuideError, UnsupportedModelError
from elip_plugin.hosts.transformers.readers import BlipReader, QFormerReader, Reader
from elip_plugin.hosts.transformers.saving import ModelSwap, PrunedModel
from elip_plugin.patching.calls import opened
from elip_plugin.patching.description import Description, Tower
from elip_plugin.patching.maps import linear_map
from elip_plugin.patching.named import patched_class
from elip_plugin.reducers import FOR_INSTRUCTIONS, FOR_QUESTIONS

ENTRIES = ("forward", "generate")
"""Methods by which images and texts enter a model."""

LEAK = (
    "at test time its text is the answer, and an image pruned by it would leak it; use 'full' or "
    "'image'"
)


def _entry(host: Callable[..., Any]) -> Callable[..., Any]:
    """Return the host's method, run as one call of the model."""
    parameters = tuple(inspect.signature(host).parameters)[1:]

    @functools.wraps(host)
    def method(self: Any, *args: Any, **options: Any) -> Any:
        given = {**dict(zip(parameters, args)), **options}
        return self.elip_run(functools.partial(host, self, *args, **options), given)

    return method


class PrunedBlip(PrunedModel):
    """A model whose text is the answer, so that the image alone chooses."""

    elip_default: ClassVar[Mapping[str, Any] | None] = None
    """What it is pruned by where nothing is said; see `Description.default`."""

    elip_leak: ClassVar[str] = LEAK
    """Why evaluation may not prune by text; "" if it may."""

    elip_teachable: ClassVar[bool] = False
    """Whether a text side that reads the tower can learn from a loss on the choice."""

    @classmethod
    def body_for(cls, replaces: Any, *data: Any) -> dict[str, Any]:
        """Return the methods by which images and texts enter."""
        return {name: _entry(vars(replaces)[name]) for name in ENTRIES if name in vars(replaces)}

    def elip_run(self, host: Callable[[], Any], given: dict[str, Any]) -> Any:
        """Run the host's method. The model's mode decides: its tower may be frozen, in evaluation.

        Args:
            host: The method, with its arguments.
            given: The arguments by their names.

        Returns:
            What it returns.
        """
        module: Any = self
        forward = self.elip.decide(module)
        if not forward.needs_guide:
            with opened(self.elip, forward):
                return host()
        reader = self.elip_reader(given)
        if reader is None:  # the tower keeps all tokens, and warns
            return host()
        with self.elip.guided(forward, reader):
            return host()

    def elip_reader(self, given: dict[str, Any]) -> Reader | None:
        """Return what guides by the arguments of a method; None if there is no text to guide."""
        return None

    def elip_project(self, features: Tensor) -> Tensor:
        """Turn text features, or a ready guide, into a guide; see `Host.text_guide`."""
        return features.detach()

    @staticmethod
    def elip_why_no_guide(model: Any) -> ElipError | None:
        """Return what to raise where a text shall guide; None if it can."""
        return ConfigError(
            f"{type(model).__name__} has no text to guide its tower (its text is the answer): set "
            "text_weight 0 to prune by the image alone"
        )


class GuidedByText(PrunedBlip):
    """A model whose text side reads the tower by cross-attention, and can so guide it."""

    elip_leak = ""
    elip_teachable = True

    elip_text: ClassVar[tuple[str, str]] = ("input_ids", "attention_mask")
    """The arguments that are the text, and its mask."""

    elip_reader_class: ClassVar[type[Reader]] = BlipReader

    def elip_reader(self, given: dict[str, Any]) -> Reader | None:
        """Return what guides by the given text; see `PrunedBlip`."""
        ids, mask = map(given.get, self.elip_text)
        if ids is None or given.get("pixel_values") is None:
            return None
        return self.elip_read(torch.as_tensor(ids), mask)  # `generate` takes lists as well

    def elip_read(self, ids: Tensor, mask: Tensor | None = None) -> Reader:
        """Return what guides by token ids [B, S], and a mask where some are padding."""
        return self.elip_reader_class(self, ids, torch.ones_like(ids) if mask is None else mask)

    def elip_project(self, features: Tensor) -> Tensor:
        """Turn class tokens [B, text width] into a guide; see `PrunedBlip`.

        A tower that is pruned by how the text side reads it takes a ready guide.
        """
        if self.elip.reducer.text_alone:
            return features.detach()
        width = _text_side(self).config.hidden_size
        if features.ndim != 2 or features.shape[1] != width:
            raise GuideError(
                f"text features have shape {tuple(features.shape)}, but this model guides by "
                f"(batch, {width})"
            )
        embed, maps = self.elip_maps()
        if not maps:
            return features.detach()
        return project_to_vision_width(features if embed is None else embed(features), maps)

    def elip_maps(self) -> tuple[Any, list[Tensor]]:
        """Return what embeds class tokens, and the maps from the tower to there, last one first."""
        model: Any = self
        if _text_side(model).config.hidden_size == self.elip.shape.width:
            return None, []
        return model.text_proj, [linear_map(model.vision_proj)]

    @staticmethod
    def elip_why_no_guide(model: Any) -> ElipError | None:
        """Refuse widths that nothing maps to each other; see `PrunedBlip`."""
        text, vision = _text_side(model).config.hidden_size, model.vision_model.config.hidden_size
        if text == vision or hasattr(model, "vision_proj") or hasattr(model, "qformer"):
            return None
        return UnsupportedModelError(
            f"{type(model).__name__} has a text encoder of width {text}, a tower of width {vision} "
            "and no projection between them by which text could guide it: make the widths equal"
        )


class GuidedByQuestion(GuidedByText):
    """A model that answers questions."""

    elip_default = FOR_QUESTIONS


class Matching(GuidedByText):
    """A model that matches images and texts."""

    elip_head: ClassVar[tuple[str, bool]] = ("use_itm_head", True)
    """The argument that asks for matching, without which scores are contrastive; its default."""

    def elip_reader(self, given: dict[str, Any]) -> Reader | None:
        """Return what guides; no image is pruned by its own text before contrastive scores."""
        module: Any = self
        if not given.get(*self.elip_head) and not module.training:
            return None
        return super().elip_reader(given)


class ReadByQFormer(GuidedByText):
    """A model whose Q-Former reads the tower together with a text."""

    elip_reader_class = QFormerReader

    def elip_maps(self) -> tuple[Any, list[Tensor]]:
        """Return the maps through the values of the first cross-attention; see `GuidedByText`."""
        model: Any = self
        values = linear_map(model.qformer.encoder.layer[0].crossattention.attention.value)
        if not hasattr(model, "text_projection"):  # InstructBLIP
            return None, [values]
        return model.text_projection, [linear_map(model.vision_projection), values]


class GuidedByInstruction(ReadByQFormer):
    """A model whose Q-Former reads the instruction."""

    elip_default = FOR_INSTRUCTIONS
    elip_text = ("qformer_input_ids", "qformer_attention_mask")

    def elip_reader(self, given: dict[str, Any]) -> Reader | None:
        """Return what guides; the instruction about a video guides each of its frames."""
        reader, images = super().elip_reader(given), given.get("pixel_values")
        if reader is None or images is None or images.ndim == 4:
            return reader
        ids, mask = (
            each.repeat_interleave(images.shape[1], 0) for each in (reader.ids, reader.mask)
        )
        return replace(reader, ids=ids, mask=mask)


class MatchingByQFormer(Matching, ReadByQFormer):
    """BLIP-2 matching images and texts."""

    elip_head = ("use_image_text_matching_head", False)

    def elip_reader(self, given: dict[str, Any]) -> Reader | None:
        """Return what guides, without the places of the image in the text; see `Matching`."""
        config: Any = self.config
        first = 0 if config.image_token_index is None else config.num_query_tokens
        cut = {k: v[:, first:] for k in self.elip_text if (v := given.get(k)) is not None}
        return super().elip_reader({**given, **cut})


def _text_side(model: Any) -> Any:
    return model.qformer if hasattr(model, "qformer") else model.text_encoder


KINDS: Mapping[str, type[PrunedBlip]] = {
    "BlipForQuestionAnswering": GuidedByQuestion,
    "BlipForImageTextRetrieval": Matching,
    "BlipForConditionalGeneration": PrunedBlip,
    "Blip2Model": PrunedBlip,
    "Blip2ForConditionalGeneration": PrunedBlip,
    "Blip2ForImageTextRetrieval": MatchingByQFormer,
    "InstructBlipModel": GuidedByInstruction,
    "InstructBlipForConditionalGeneration": GuidedByInstruction,
    "InstructBlipVideoModel": GuidedByInstruction,
    "InstructBlipVideoForConditionalGeneration": GuidedByInstruction,
}
"""By the names of transformers' classes; `BlipModel` is a contrastive model as CLIP's is."""

MODELS: dict[type, type[nn.Module]] = {
    getattr(transformers, name): patched_class(kind, getattr(transformers, name))
    for name, kind in KINDS.items()
    if hasattr(transformers, name)
}


def describe(model: Any, tower: Tower) -> Description:
    """Describe a model whose tower is described; see `Host.describe`."""
    patched: Any = MODELS[type(model)]
    return Description(
        model,
        tower,
        (ModelSwap(model, patched),),
        no_eval_by_text=patched.elip_leak,
        no_text_guide=patched.elip_why_no_guide(model),
        teachable=patched.elip_teachable,
        default=patched.elip_default,
    )
