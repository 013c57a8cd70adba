"""How images and text enter LAVIS' models, which says where their towers get a guide.

A class states what guides its tower, through which method images and text enter, and whether a
text is an input at test time. Everything else stays LAVIS' own.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from elip_plugin.config import PAPER
from elip_plugin.hosts.lavis.build import from_config
from elip_plugin.hosts.lavis.guide import guided_by_text
from elip_plugin.hosts.lavis.text import TokenizesOnce, inner_bert, text_pass
from elip_plugin.patching.swap import Patched


class PrunedModel(TokenizesOnce, Patched):
    """A model of LAVIS whose vision tower is pruned."""

    guided_by: ClassVar[str] = "caption"
    """What guides the tower: "caption", "question", "sentence", or "nothing"."""

    default: ClassVar[str | Mapping[str, Any]] = PAPER
    """What a model section without `elip` prunes by: a preset's name, in place of which another is
    recommended, or a mapping."""

    text_at_test: ClassVar[bool] = False
    """Whether evaluation may prune by text (`eval_mode: text`) without leaking the answer."""

    own_text_pass: ClassVar[bool] = False
    """Whether the model's forward has this very text pass, which is then run once."""

    images_per_text: ClassVar[int] = 1
    """How many images each text guides, in one batch after the other."""

    tokens: ClassVar[Mapping[str, Any]] = {"padding": "longest", "truncation": True}
    """How the model tokenizes; its `max_txt_len` is added."""

    @classmethod
    def from_config(cls, cfg: Any = None) -> Any:
        """Build the model from LAVIS' model section; see `build.from_config`."""
        return from_config(cls, cfg)

    def elip_encoder(self, suffix: str) -> Any:
        """Return the text encoder, or with suffix "_m" that of the momentum encoder."""
        return inner_bert(getattr(self, f"text_encoder{suffix}"))

    def elip_tokenize(self: Any, tokenizer: Any, captions: Any) -> Any:
        """Tokenize captions as the model does: ids and mask [B, S]."""
        options = {**self.tokens, "return_tensors": "pt"}
        if "truncation" in options:
            options["max_length"] = self.max_txt_len
        return tokenizer(captions, **options).to(self.device)

    def elip_encode(self: Any, tokenizer: Any, captions: Any, suffix: str) -> tuple[Any, Any, Any]:
        """Encode captions: their token ids, the text pass, the features that guide."""
        tokens = self.elip_tokenize(tokenizer, captions)
        output = text_pass(self.elip_encoder(suffix), tokens)
        return tokens.input_ids, output, output.last_hidden_state[:, 0]


class GuidedForward(PrunedModel):
    """A pruned model whose images and text enter through `forward`."""

    def forward(self, samples: dict[str, Any], *args: Any, **options: Any) -> Any:
        """Run LAVIS' forward with the tower guided by the samples' text."""
        with guided_by_text(self, samples):
            return super().forward(samples, *args, **options)  # type: ignore[misc]


class Matching(GuidedForward):
    """A pruned model that matches images and texts."""

    text_at_test = True

    def forward(self, samples: dict[str, Any], match_head: str = "itm") -> Any:
        """Match; no image is pruned by its own text before contrastive scores."""
        if match_head != "itm" and not self.training:
            return self.replaces.forward(self, samples, match_head)
        return super().forward(samples, match_head=match_head)


class GuidedEncoder(PrunedModel):
    """A pruned model whose training and answering share `forward_encoder`."""

    def forward_encoder(self, samples: dict[str, Any]) -> Any:
        """Encode image and question, the tower guided by the question."""
        with guided_by_text(self, samples):
            return super().forward_encoder(samples)  # type: ignore[misc]


class GuidedFeatures(PrunedModel):
    """A pruned model that extracts features of pairs."""

    @torch.no_grad()  # as LAVIS' method: the text pass that guides becomes part of the output
    def extract_features(self, samples: dict[str, Any], mode: Any = "multimodal") -> Any:
        """Extract features, the tower guided by the text where both are asked for."""
        if "multimodal" not in mode:  # features of an image alone must not depend on a text
            return super().extract_features(samples, mode)  # type: ignore[misc]
        with guided_by_text(self, samples):
            return super().extract_features(samples, mode)  # type: ignore[misc]


def pruned_class(module: str, base: type[Any], entry: type[PrunedModel], **facts: Any) -> type[Any]:
    """Build the pruned class of one of LAVIS' classes, from the way that its text enters.

    `module` keeps it, where pickle looks for it; `facts` are other class attributes.
    """
    name = f"Elip{base.__name__}"
    doc = f"LAVIS' `{base.__name__}` with text-guided pruning."
    made = type(name, (entry, base), {"replaces": base, "__module__": module, "__doc__": doc})
    for fact, value in facts.items():
        setattr(made, fact, value)
    setattr(sys.modules[module], name, made)
    return made
