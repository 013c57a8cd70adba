"""BLIP-2 and InstructBLIP: a Q-Former reads the tokens of a vision tower that is mostly frozen.

A frozen tower stays in evaluation mode, so here the model's own mode says whether it trains. What
pruning saves then is the tower's forward. The Q-Former's masks follow the number of tokens.
"""

from __future__ import annotations

from typing import Any, ClassVar

from lavis.common.registry import registry
from lavis.models import Blip2OPT, Blip2Qformer, Blip2T5
from lavis.models.blip2_models.blip2_image_text_matching import Blip2ITM

from elip_plugin.hosts.lavis.guide import guided_by_text
from elip_plugin.hosts.lavis.guided import Matching, PrunedModel, pruned_class
from elip_plugin.hosts.lavis.text import qformer_pass


class GuidedQFormer(PrunedModel):
    """A pruned model whose Q-Former encodes texts too."""

    default = "fast"  # a frozen tower pays for a lookahead in full, and saves its forward only
    tokens: ClassVar[Any] = {"padding": "max_length", "truncation": True}

    @property
    def elip_training(self: Any) -> bool:
        """Whether the model trains; its tower may be frozen, in evaluation mode."""
        return self.training

    def elip_encode(self: Any, tokenizer: Any, captions: Any, suffix: str) -> tuple[Any, Any, Any]:
        """Encode captions; see `PrunedModel`."""
        tokens = self.elip_tokenize(tokenizer, captions)
        output = qformer_pass(self, tokens)
        return tokens.input_ids, output, output.last_hidden_state[:, 0]

    def forward(self: Any, samples: dict[str, Any], *args: Any, **options: Any) -> Any:
        """Run LAVIS' forward with the tower guided by the samples' text, if the model has one."""
        asked = self.elip.asked(self, as_training=self.training)
        with asked, guided_by_text(self, samples):
            return super().forward(samples, *args, **options)  # type: ignore[misc]


class ElipBlip2ITM(Matching, GuidedQFormer, Blip2ITM):
    """BLIP-2 matching images and texts."""

    replaces = Blip2ITM


class GuidedByInstruction(GuidedQFormer):
    """InstructBLIP, whose Q-Former reads the instruction."""

    guided_by = "instruction"
    text_at_test = True

    def generate(self: Any, samples: dict[str, Any], *args: Any, **options: Any) -> Any:
        """Run LAVIS' method with the tower guided by the prompts."""
        prompt = samples.get("prompt", self.prompt)
        texts = [prompt] * len(samples["image"]) if isinstance(prompt, str) else list(prompt)
        with guided_by_text(self, {"text_input": texts}):
            return super().generate(samples, *args, **options)  # type: ignore[misc]


ARCHS: dict[str, type[Any]] = {
    "blip2": pruned_class(__name__, Blip2Qformer, GuidedQFormer),
    "blip2_image_text_matching": ElipBlip2ITM,
    # Their language models read the Q-Former's tokens and the answer: the image alone chooses.
    "blip2_opt": pruned_class(__name__, Blip2OPT, GuidedQFormer, guided_by="nothing"),
    "blip2_t5": pruned_class(__name__, Blip2T5, GuidedQFormer, guided_by="nothing"),
}
ARCHS["blip2_feature_extractor"] = ARCHS["blip2"]
"""Pruned classes by LAVIS' name for the base."""

for _name in ("blip2_t5_instruct", "blip2_vicuna_instruct"):  # of LAVIS' main branch
    _base = registry.get_model_class(_name)
    if _base is not None:
        ARCHS[_name] = pruned_class(__name__, _base, GuidedByInstruction)
