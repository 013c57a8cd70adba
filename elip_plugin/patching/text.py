"""The text that guides an image is encoded once: before the host's own forward asks for it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, ClassVar

from torch import Tensor

from elip_plugin.patching.calls import thread
from elip_plugin.patching.named import NamedAsReplaced

CAPTION_LEAKS = (
    "an image pruned by its own caption leaks the answer into retrieval and zero-shot scores; use "
    "'full' or 'image', or guide_source 'batch', which knows no pairs"
)
"""Why a contrastive model's evaluation is not pruned by text; see `Description`."""


@dataclass
class EncodedText:
    """The text of a guided forward in progress; None before it is encoded."""

    output: Any = None


class EncodesOnce(NamedAsReplaced):
    """What encodes texts by some of its methods, in a guided forward once."""

    @classmethod
    def body_for(cls, replaces: Any, *data: Any) -> dict[str, Any]:
        """Return the methods that encode texts."""
        return {name: _once(getattr(replaces, name)) for name in data}


def _once(host: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that encodes texts, or returns what is encoded already."""

    @functools.wraps(host)
    def method(self: Any, *args: Any, **options: Any) -> Any:
        entry = thread.innermost
        while entry is not None and entry[0] is not self:
            entry = entry[2]
        if entry is None:
            return host(self, *args, **options)
        encoded: EncodedText = entry[1]
        if encoded.output is None:
            encoded.output = host(self, *args, **options)
        return encoded.output

    return method


class TextFirst(NamedAsReplaced):
    """A contrastive model whose vision tower is guided by the text.

    Hosts encode the image first. Here the text is encoded before the host's own forward, which then
    gets that result from what encodes texts.
    """

    elip_encoder: ClassVar[str] = ""
    """Path of what encodes texts, an `EncodesOnce`; "" for methods of the model itself."""

    @classmethod
    def body_for(cls, replaces: Any, *data: Any) -> dict[str, Any]:
        """Return the forward, and the methods that encode texts."""
        methods = {name: _once(getattr(replaces, name)) for name in data}
        return {"forward": _text_first(replaces.forward), **methods}

    def elip_guide(self, given: Mapping[str, Any]) -> Tensor | None:
        """Encode the text among the arguments, and return the guide [B, D] that it makes.

        None where there is no text, or no image that it could guide.
        """
        raise NotImplementedError


def _text_first(host: Callable[..., Any]) -> Callable[..., Any]:
    """Return a forward that encodes the text before it runs the host's."""
    names = tuple(inspect.signature(host).parameters)[1:]

    @functools.wraps(host)
    def forward(self: Any, *args: Any, **options: Any) -> Any:
        pruner, before = self.elip, thread.innermost
        decided = pruner.decide(self)
        if not decided.level or decided.text_weight == 0 or decided.guide is not None:
            return host(self, *args, **options)
        encoder = attrgetter(self.elip_encoder)(self) if self.elip_encoder else self
        thread.innermost = (encoder, EncodedText(), before)
        try:
            decided.model_guide = self.elip_guide({**dict(zip(names, args)), **options})
            if decided.model_guide is not None:
                thread.innermost = (pruner, decided, thread.innermost)
            return host(self, *args, **options)
        finally:
            thread.innermost = before

    return forward
