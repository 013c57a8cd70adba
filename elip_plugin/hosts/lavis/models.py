"""LAVIS' models with a text-guided vision tower: one class for each that can be pruned.

A class says what guides its tower, through which method images and text enter, and whether a
text is there at test time. Everything else stays LAVIS' own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
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
from torch import Tensor

from elip_plugin.hosts.lavis import text
from elip_plugin.hosts.lavis.factory import from_config
from elip_plugin.hosts.lavis.guide import guided_by_clip, guided_by_text
from elip_plugin.hosts.lavis.runtime.paths import configs_root
from elip_plugin.hosts.lavis.scores import contrastive_scores
from elip_plugin.patching.monkeypatch import replaced
from elip_plugin.patching.swap import Patched

SMALL = "openmoji"
"""Model type of the small towers of `lavis_configs`, which train on a CPU."""


def _small(base: type[Any], family: str) -> dict[str, str]:
    """The base's model types, and the small one."""
    path = configs_root() / "models" / f"{family}_openmoji.yaml"
    return {**base.PRETRAINED_MODEL_CONFIG_DICT, SMALL: str(path)}


class Twin(Patched):
    """A model of LAVIS whose vision tower is pruned."""

    guided_by: ClassVar[str] = "caption"
    """What guides the tower: "caption", "question", "sentence", or "nothing"."""

    text_at_test: ClassVar[bool] = False
    """Whether evaluation may prune by text (`eval: text`) without leaking the answer."""

    own_text_pass: ClassVar[bool] = False
    """Whether the model's forward has this very text pass, which is then run once."""

    images_per_text: ClassVar[int] = 1
    """How many images each text guides, in one batch after the other."""

    tokens: ClassVar[Mapping[str, Any]] = {"padding": "longest", "truncation": True}
    """How the model tokenizes; its `max_txt_len` is added."""

    @classmethod
    def from_config(cls, cfg: Any = None) -> Any:
        """Build the model.

        Args:
            cfg: LAVIS' model section, with our keys; see `elip_plugin.hosts.lavis.factory`.

        Returns:
            The pruned model.
        """
        return from_config(cls, cfg)


class ByForward(Twin):
    """A twin whose images and text enter through `forward`."""

    def forward(self, samples: dict[str, Any], *args: Any, **options: Any) -> Any:
        """Run LAVIS' forward with the tower guided by the samples' text.

        Args:
            samples: As in LAVIS.
            *args: As in LAVIS.
            **options: As in LAVIS.

        Returns:
            What LAVIS' forward returns.
        """
        with guided_by_text(self, samples):
            return super().forward(samples, *args, **options)  # type: ignore[misc]


class ByEncoder(Twin):
    """A twin whose training and answering share `forward_encoder`."""

    def forward_encoder(self, samples: dict[str, Any]) -> Any:
        """Encode image and question, the tower guided by the question.

        Args:
            samples: As in LAVIS.

        Returns:
            What LAVIS' method returns.
        """
        with guided_by_text(self, samples):
            return super().forward_encoder(samples)  # type: ignore[misc]


class ByFeatures(Twin):
    """A twin that extracts features of pairs."""

    @torch.no_grad()  # as LAVIS' method: the text pass that guides becomes part of the output
    def extract_features(self, samples: dict[str, Any], mode: Any = "multimodal") -> Any:
        """Extract features, the tower guided by the text where both are asked for.

        Args:
            samples: As in LAVIS.
            mode: As in LAVIS.

        Returns:
            What LAVIS' method returns.
        """
        if "multimodal" not in mode:  # features of an image alone must not know a text
            return super().extract_features(samples, mode)  # type: ignore[misc]
        with guided_by_text(self, samples):
            return super().extract_features(samples, mode)  # type: ignore[misc]


class Scored(ByForward):
    """A pre-training twin, which can also be evaluated by LAVIS' retrieval task."""

    own_text_pass = True
    tokens: ClassVar[Mapping[str, Any]] = {"padding": "max_length", "truncation": True}

    def compute_sim_matrix(self, data_loader: Any, task_cfg: Any = None) -> Any:
        """Score all pairs of a retrieval split by their contrastive similarity.

        Args:
            data_loader: Loader of a LAVIS retrieval split.
            task_cfg: Not used: nothing is ranked anew by matching.

        Returns:
            Arrays of scores, images by texts and texts by images.
        """
        return contrastive_scores(self, data_loader)


class ElipAlbefPretrain(Scored, AlbefPretrain):
    """ALBEF pre-training."""

    replaces = AlbefPretrain
    PRETRAINED_MODEL_CONFIG_DICT: ClassVar[dict[str, str]] = _small(AlbefPretrain, "albef")


class ElipAlbefRetrieval(ByForward, AlbefRetrieval):
    """ALBEF fine-tuned for retrieval."""

    replaces = AlbefRetrieval
    own_text_pass = True
    tokens: ClassVar[Mapping[str, Any]] = Scored.tokens


class ElipAlbefVQA(ByEncoder, AlbefVQA):
    """ALBEF answering questions."""

    replaces = AlbefVQA
    guided_by = "question"
    text_at_test = own_text_pass = True


class ElipAlbefNLVR(ByForward, AlbefNLVR):
    """ALBEF judging a sentence about two images, both guided by it."""

    replaces = AlbefNLVR
    guided_by = "sentence"
    text_at_test = own_text_pass = True
    images_per_text = 2


class ElipAlbefClassification(ByForward, AlbefClassification):
    """ALBEF classifying pairs (visual entailment)."""

    replaces = AlbefClassification
    guided_by = "sentence"
    text_at_test = own_text_pass = True


class ElipAlbefFeatureExtractor(ByFeatures, AlbefFeatureExtractor):
    """ALBEF as an extractor of features."""

    replaces = AlbefFeatureExtractor
    text_at_test = own_text_pass = True
    tokens: ClassVar[Mapping[str, Any]] = {"padding": True}


class ElipBlipPretrain(Scored, BlipPretrain):
    """BLIP pre-training."""

    replaces = BlipPretrain
    PRETRAINED_MODEL_CONFIG_DICT: ClassVar[dict[str, str]] = _small(BlipPretrain, "blip")


class ElipBlipRetrieval(ByForward, BlipRetrieval):
    """BLIP fine-tuned for retrieval."""

    replaces = BlipRetrieval
    own_text_pass = True
    tokens: ClassVar[Mapping[str, Any]] = Scored.tokens


class ElipBlipVQA(ByEncoder, BlipVQA):
    """BLIP answering questions."""

    replaces = BlipVQA
    guided_by = "question"
    text_at_test = True


class ElipBlipNLVR(ByForward, BlipNLVR):
    """BLIP judging a sentence about two images, both guided by it."""

    replaces = BlipNLVR
    guided_by = "sentence"
    text_at_test = True
    images_per_text = 2
    tokens: ClassVar[Mapping[str, Any]] = {"padding": "longest"}


class ElipBlipClassification(ByForward, BlipClassification):
    """BLIP classifying pairs."""

    replaces = BlipClassification
    guided_by = "sentence"
    text_at_test = True

    def forward(self, samples: dict[str, Any], is_train: bool = True) -> Any:
        """Run LAVIS' forward, which by itself cannot train.

        Args:
            samples: As in LAVIS.
            is_train: As in LAVIS.

        Returns:
            What LAVIS' forward returns.
        """
        # blip_classification.py:129 fills a field that only ALBEF's record of outputs has.
        with replaced(blip_classification, "BlipIntermediateOutput", AlbefIntermediateOutput):
            return super().forward(samples, is_train)


class ElipBlipCaption(Twin, BlipCaption):
    """BLIP captioning: the caption is the answer, so the image alone chooses its tokens."""

    replaces = BlipCaption
    guided_by = "nothing"


class ElipBlipITM(ByForward, BlipITM):
    """BLIP matching images and texts."""

    replaces = BlipITM
    text_at_test = True

    def forward(self, samples: dict[str, Any], match_head: str = "itm") -> Any:
        """Match images and texts.

        Args:
            samples: As in LAVIS.
            match_head: "itm" for the matching head; "itc" for the contrastive similarity of
                all pairs, before which no image may know its own text at test time.

        Returns:
            What LAVIS' forward returns.
        """
        if match_head != "itm" and not self.training:
            return BlipITM.forward(self, samples, match_head)
        return super().forward(samples, match_head=match_head)


class ElipBlipFeatureExtractor(ByFeatures, BlipFeatureExtractor):
    """BLIP as an extractor of features."""

    replaces = BlipFeatureExtractor
    text_at_test = True
    tokens: ClassVar[Mapping[str, Any]] = {"padding": True}


class ElipClip(Twin, CLIP):
    """LAVIS' own CLIP."""

    replaces = CLIP
    PRETRAINED_MODEL_CONFIG_DICT: ClassVar[dict[str, str]] = _small(CLIP, "clip")
    own_text_pass = True

    if TYPE_CHECKING:
        elip: text.TextMemo

    def forward(self, samples: dict[str, Any]) -> Any:
        """Run LAVIS' forward with the tower guided by the samples' text.

        Args:
            samples: As in LAVIS.

        Returns:
            What LAVIS' forward returns.
        """
        with guided_by_clip(self, samples):
            return super().forward(samples)

    def extract_features(self, samples: dict[str, Any]) -> Any:
        """Extract features; those of the image know a text in training only.

        Args:
            samples: As in LAVIS.

        Returns:
            What LAVIS' method returns.
        """
        with guided_by_clip(self, samples):
            return super().extract_features(samples)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Encode token ids, unless this forward has encoded them already.

        Args:
            tokens: Token ids [B, S].

        Returns:
            Text features [B, E].
        """
        known = self.elip.get(tokens)
        return known if known is not None else super().encode_text(tokens)

    @property
    def loss(self) -> Any:
        """LAVIS' loss, which takes a process group for granted; here one process will do."""
        return ClipLoss(world_size=dist_utils.get_world_size(), rank=dist_utils.get_rank())


ARCHS: dict[str, type[Any]] = {
    "albef_pretrain": ElipAlbefPretrain,
    "albef_retrieval": ElipAlbefRetrieval,
    "albef_vqa": ElipAlbefVQA,
    "albef_nlvr": ElipAlbefNLVR,
    "albef_classification": ElipAlbefClassification,
    "albef_feature_extractor": ElipAlbefFeatureExtractor,
    "blip_pretrain": ElipBlipPretrain,
    "blip_retrieval": ElipBlipRetrieval,
    "blip_vqa": ElipBlipVQA,
    "blip_nlvr": ElipBlipNLVR,
    "blip_classification": ElipBlipClassification,
    "blip_caption": ElipBlipCaption,
    "blip_image_text_matching": ElipBlipITM,
    "blip_feature_extractor": ElipBlipFeatureExtractor,
    "clip": ElipClip,
    "clip_feature_extractor": ElipClip,
}
"""Pruned classes by LAVIS' name for the base."""

MODELS: dict[type, type[Any]] = {twin.replaces: twin for twin in ARCHS.values()}
"""Pruned classes by LAVIS' class."""
