"""LAVIS' models with a text-guided vision tower: one class for each that can be pruned."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from lavis.common.dist_utils import is_dist_avail_and_initialized
from lavis.models import (
    CLIP,
    AlbefClassification,
    AlbefFeatureExtractor,
    AlbefNLVR,
    AlbefPretrain,
    AlbefRetrieval,
    AlbefVQA,
    BlipCaption,
    BlipClassification,
    BlipFeatureExtractor,
    BlipITM,
    BlipNLVR,
    BlipPretrain,
    BlipRetrieval,
    BlipVQA,
)
from lavis.models.clip_models.loss import ClipLoss
from torch import Tensor

from elip_plugin.hosts.lavis import towers
from elip_plugin.hosts.lavis.compat.paths import configs_root
from elip_plugin.hosts.lavis.describe import describe_model
from elip_plugin.hosts.lavis.guide import guided_by_text
from elip_plugin.hosts.lavis.guided import (
    GuidedEncoder,
    GuidedFeatures,
    GuidedForward,
    Matching,
    PrunedModel,
    pruned_class,
)
from elip_plugin.hosts.lavis.text import text_pass_of
from elip_plugin.patching.description import Description
from elip_plugin.patching.swap import swap_for
from elip_plugin.reducers import FOR_QUESTIONS

SMALL = "openmoji"
"""Model type of the small towers of `lavis_configs`, which train on a CPU."""

TYPES = "PRETRAINED_MODEL_CONFIG_DICT"
"""Class attribute of LAVIS: the files of a model's types."""

TEXTS_PER_BATCH = 256


def _small(base: type[Any], family: str) -> dict[str, str]:
    """Return the base's model types, and the small one."""
    path = configs_root() / "models" / f"{family}_openmoji.yaml"
    return {**base.PRETRAINED_MODEL_CONFIG_DICT, SMALL: str(path)}


class Scored(GuidedForward):
    """A pre-training model, which can also be evaluated by LAVIS' retrieval task."""

    own_text_pass = True
    tokens: ClassVar[Mapping[str, Any]] = {"padding": "max_length", "truncation": True}

    @torch.no_grad()
    def compute_sim_matrix(self: Any, data_loader: Any, task_cfg: Any = None) -> Any:
        """Score all pairs of a retrieval split by the cosines of their embeddings."""
        texts, encode = data_loader.dataset.text, self.visual_encoder.forward_features
        parts = (texts[i : i + TEXTS_PER_BATCH] for i in range(0, len(texts), TEXTS_PER_BATCH))
        encoded = (self.elip_encode(self.tokenizer, part, "")[2] for part in parts)
        text = torch.cat([self.text_proj(each) for each in encoded])
        images = (samples["image"].to(self.device) for samples in data_loader)
        image = torch.cat([self.vision_proj(encode(each)[:, 0]) for each in images])
        scores = (F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).t()).cpu().numpy()
        return scores, scores.T


class ElipClip(GuidedForward, CLIP):
    """LAVIS' own CLIP."""

    replaces = CLIP
    PRETRAINED_MODEL_CONFIG_DICT = _small(CLIP, "clip")
    own_text_pass = True

    @property
    def loss(self) -> Any:
        """LAVIS' loss; it asks how many processes there are, which takes a process group."""
        return super().loss if is_dist_avail_and_initialized() else ClipLoss()

    def extract_features(self, samples: dict[str, Any]) -> Any:
        """Extract features; those of the image depend on a text in training only."""
        with guided_by_text(self, samples):
            return super().extract_features(samples)

    def elip_encoder(self, suffix: str) -> Any:
        """Return what encodes texts: the model itself."""
        return self

    def elip_encode(self, tokenizer: Any, captions: Any, suffix: str) -> tuple[Any, Any, Any]:
        """Encode captions; see `PrunedModel`."""
        ids = tokenizer(captions)
        features = self.encode_text(ids)
        return ids, features, features

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Encode token ids, unless this forward has encoded them already."""
        done = text_pass_of(self, tokens)
        return super().encode_text(tokens) if done is None else done.output


_pruned = partial(pruned_class, __name__)
QUESTION = {
    "guided_by": "question",
    "text_at_test": True,
    "default": FOR_QUESTIONS,
}
SENTENCE = {"guided_by": "sentence", "text_at_test": True}
OWN = {"own_text_pass": True}
PADDED: dict[str, Any] = {"tokens": {"padding": True}}

ARCHS: dict[str, type[Any]] = {
    "albef_pretrain": _pruned(AlbefPretrain, Scored, **{TYPES: _small(AlbefPretrain, "albef")}),
    "albef_retrieval": _pruned(AlbefRetrieval, GuidedForward, **OWN, tokens=Scored.tokens),
    "albef_vqa": _pruned(AlbefVQA, GuidedEncoder, **OWN, **QUESTION),
    "albef_nlvr": _pruned(AlbefNLVR, GuidedForward, **OWN, **SENTENCE, images_per_text=2),
    "albef_classification": _pruned(AlbefClassification, GuidedForward, **OWN, **SENTENCE),
    "albef_feature_extractor": _pruned(
        AlbefFeatureExtractor, GuidedFeatures, **OWN, **PADDED, text_at_test=True
    ),
    "blip_pretrain": _pruned(BlipPretrain, Scored, **{TYPES: _small(BlipPretrain, "blip")}),
    "blip_retrieval": _pruned(BlipRetrieval, GuidedForward, **OWN, tokens=Scored.tokens),
    "blip_vqa": _pruned(BlipVQA, GuidedEncoder, **QUESTION),
    "blip_nlvr": _pruned(
        BlipNLVR, GuidedForward, **SENTENCE, images_per_text=2, tokens={"padding": "longest"}
    ),
    "blip_classification": _pruned(BlipClassification, GuidedForward, **SENTENCE),
    # The caption is the answer, so the image alone chooses its tokens.
    "blip_caption": _pruned(BlipCaption, PrunedModel, guided_by="nothing"),
    "blip_image_text_matching": _pruned(BlipITM, Matching),
    "blip_feature_extractor": _pruned(
        BlipFeatureExtractor, GuidedFeatures, **PADDED, text_at_test=True
    ),
    "clip": ElipClip,
    "clip_feature_extractor": ElipClip,
}
"""Pruned classes by LAVIS' name for the base."""

MODELS: dict[type, type[Any]] = {cls.replaces: cls for cls in ARCHS.values()}
"""Pruned classes by LAVIS' class."""


def describe(module: Any) -> Description:
    """Describe a LAVIS model, or a bare vision tower of ALBEF and BLIP; see `Host.describe`."""
    if not hasattr(module, "visual_encoder") and not hasattr(module, "visual"):
        return Description(module, towers.describe(module))
    return describe_model(module, swap_for(module, MODELS))
