"""LAVIS' models with a text-guided vision tower: one class for each that can be pruned."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from lavis.common import dist_utils
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
from lavis.models.albef_models.albef_outputs import AlbefIntermediateOutput
from lavis.models.blip_models import blip_classification
from lavis.models.clip_models.loss import ClipLoss
from lavis.models.eva_vit import VisionTransformer as EvaTower
from torch import Tensor

from elip_plugin.errors import ConfigError, ElipError, UnsupportedModelError
from elip_plugin.hosts.lavis import blip2, clip_towers, eva_tower, towers
from elip_plugin.hosts.lavis.entries import (
    ByEncoder,
    ByFeatures,
    ByForward,
    PrunedModel,
    pruned_class,
)
from elip_plugin.hosts.lavis.guide import guided_by_text
from elip_plugin.hosts.lavis.runtime.paths import configs_root
from elip_plugin.hosts.lavis.text import (
    TEXT_ENCODERS,
    inner_bert,
    text_pass_of,
    text_token,
)
from elip_plugin.patching.description import Description, Tower
from elip_plugin.patching.monkeypatch import replaced
from elip_plugin.patching.swap import choose
from elip_plugin.reducers import FOR_QUESTIONS

SMALL = "openmoji"
"""Model type of the small towers of `lavis_configs`, which train on a CPU."""

TEXTS_PER_BATCH = 256


def _small(base: type[Any], family: str) -> dict[str, str]:
    """Return the base's model types, and the small one."""
    path = configs_root() / "models" / f"{family}_openmoji.yaml"
    return {**base.PRETRAINED_MODEL_CONFIG_DICT, SMALL: str(path)}


class Scored(ByForward):
    """A pre-training model, which can also be evaluated by LAVIS' retrieval task."""

    own_text_pass = True
    tokens: ClassVar[Mapping[str, Any]] = {"padding": "max_length", "truncation": True}

    @torch.no_grad()
    def compute_sim_matrix(self: Any, data_loader: Any, task_cfg: Any = None) -> Any:
        """Score all pairs of a retrieval split by the cosines of their embeddings."""
        texts, encode = data_loader.dataset.text, self.visual_encoder.forward_features
        parts = (texts[i : i + TEXTS_PER_BATCH] for i in range(0, len(texts), TEXTS_PER_BATCH))
        text = torch.cat([self.text_proj(text_token(self, part)) for part in parts])
        images = (samples["image"].to(self.device) for samples in data_loader)
        image = torch.cat([self.vision_proj(encode(each)[:, 0]) for each in images])
        scores = (F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).t()).cpu().numpy()
        return scores, scores.T


class ElipBlipClassification(ByForward, BlipClassification):
    """BLIP classifying pairs."""

    replaces = BlipClassification
    guided_by = "sentence"
    text_at_test = True

    def forward(self, samples: dict[str, Any], is_train: bool = True) -> Any:
        """Run LAVIS' forward, which by itself cannot train."""
        # blip_classification.py:129 fills a field that only ALBEF's record of outputs has.
        with replaced(blip_classification, "BlipIntermediateOutput", AlbefIntermediateOutput):
            return super().forward(samples, is_train)


class ElipBlipITM(ByForward, BlipITM):
    """BLIP matching images and texts."""

    replaces = BlipITM
    text_at_test = True

    def forward(self, samples: dict[str, Any], match_head: str = "itm") -> Any:
        """Match images and texts; no image is pruned by its own text before contrastive scores."""
        if match_head != "itm" and not self.training:
            return BlipITM.forward(self, samples, match_head)
        return super().forward(samples, match_head=match_head)


class ElipClip(ByForward, CLIP):
    """LAVIS' own CLIP."""

    replaces = CLIP
    PRETRAINED_MODEL_CONFIG_DICT = _small(CLIP, "clip")
    own_text_pass = True

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

    @property
    def loss(self) -> Any:
        """LAVIS' loss, which requires a process group; here one process is enough."""
        return ClipLoss(world_size=dist_utils.get_world_size(), rank=dist_utils.get_rank())


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
    "albef_pretrain": pruned_class(
        __name__, AlbefPretrain, Scored, PRETRAINED_MODEL_CONFIG_DICT=_small(AlbefPretrain, "albef")
    ),
    "albef_retrieval": pruned_class(
        __name__, AlbefRetrieval, ByForward, **OWN, tokens=Scored.tokens
    ),
    "albef_vqa": _pruned(AlbefVQA, ByEncoder, **OWN, **QUESTION),
    "albef_nlvr": pruned_class(
        __name__, AlbefNLVR, ByForward, **OWN, **SENTENCE, images_per_text=2
    ),
    "albef_classification": pruned_class(
        __name__, AlbefClassification, ByForward, **OWN, **SENTENCE
    ),
    "albef_feature_extractor": pruned_class(
        __name__, AlbefFeatureExtractor, ByFeatures, **OWN, **PADDED, text_at_test=True
    ),
    "blip_pretrain": pruned_class(
        __name__, BlipPretrain, Scored, PRETRAINED_MODEL_CONFIG_DICT=_small(BlipPretrain, "blip")
    ),
    "blip_retrieval": _pruned(BlipRetrieval, ByForward, **OWN, tokens=Scored.tokens),
    "blip_vqa": _pruned(BlipVQA, ByEncoder, **QUESTION),
    "blip_nlvr": pruned_class(
        __name__, BlipNLVR, ByForward, **SENTENCE, images_per_text=2, tokens={"padding": "longest"}
    ),
    "blip_classification": ElipBlipClassification,
    # The caption is the answer, so the image alone chooses its tokens.
    "blip_caption": _pruned(BlipCaption, PrunedModel, guided_by="nothing"),
    "blip_image_text_matching": ElipBlipITM,
    "blip_feature_extractor": pruned_class(
        __name__, BlipFeatureExtractor, ByFeatures, **PADDED, text_at_test=True
    ),
    "clip": ElipClip,
    "clip_feature_extractor": ElipClip,
    **blip2.ARCHS,
}
"""Pruned classes by LAVIS' name for the base."""

MODELS: dict[type, type[Any]] = {cls.replaces: cls for cls in ARCHS.values()}
"""Pruned classes by LAVIS' class."""


LEAK = (
    "at test time its text is the answer, or is compared with all images, and an image pruned by "
    "it would leak it into the scores; use 'full' or 'image'"
)


def describe(module: Any) -> Description:
    """Describe a LAVIS model, or a bare vision tower of ALBEF and BLIP; see `Host.describe`."""
    if not hasattr(module, "visual_encoder") and not hasattr(module, "visual"):
        return Description(module, _describe_tower(module))
    model = choose(module, MODELS)
    patched: Any = model.patched
    leak = "" if patched.text_at_test else LEAK
    if hasattr(module, "visual"):
        return Description(module, clip_towers.describe(module.visual), (model,), None, leak)
    if hasattr(module, "Qformer"):
        tower = _describe_tower(module.visual_encoder)
        return Description(module, tower, (model,), None, leak, _why_no_guide(module, patched))
    encoders = [getattr(module, n, None) for n in ("text_encoder", "text_encoder_m")]
    berts = [inner_bert(e) for e in encoders if e is not None] if patched.own_text_pass else []
    return Description(
        module,
        towers.describe(module.visual_encoder),
        (*(choose(bert, TEXT_ENCODERS) for bert in berts), model),
        towers.describe(module.visual_encoder_m) if hasattr(module, "visual_encoder_m") else None,
        leak,
        _why_no_guide(module, patched),
        teachable=True,
    )


def _describe_tower(tower: Any) -> Tower:
    return (eva_tower if isinstance(tower, EvaTower) else towers).describe(tower)


def _why_no_guide(model: Any, patched: Any) -> ElipError | None:
    name = patched.replaces.__name__
    if patched.guided_by == "nothing":
        return ConfigError(
            f"{name} has no text to guide its tower (its caption is the answer): set "
            "text_weight 0 to prune by the image alone"
        )
    if hasattr(model, "Qformer"):
        if model.Qformer.bert.embeddings.word_embeddings is not None:
            return None
        return ConfigError(
            f"the Q-Former of {name} reads no text that could guide its tower "
            "(qformer_text_input is false): set text_weight 0 to prune by the image alone"
        )
    text_width = inner_bert(model.text_encoder).config.hidden_size
    vision_width = model.visual_encoder.embed_dim
    if text_width == vision_width or hasattr(model, "vision_proj"):
        return None
    # LAVIS' answer decoders take the tower's width, so VQA cannot do with unequal ones.
    needs_equal = hasattr(model, "text_decoder")
    other = "" if needs_equal else ", or set text_weight 0 to prune by the image alone"
    return UnsupportedModelError(
        f"{name} has a text encoder of width {text_width}, a tower of width {vision_width} "
        "and no projection between them by which text could guide it: make the widths "
        f"equal{other}"
    )
