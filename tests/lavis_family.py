"""Narrow copies of LAVIS' models, pruned and stock, with samples, runs and evaluations of each.

What records and compares them is in `lavis_recorders.py`.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import lavis  # noqa: F401
import torch
import torch.nn.functional as F
from lavis.models.albef_models.albef_outputs import AlbefIntermediateOutput
from lavis_recorders import tensors
from omegaconf import OmegaConf
from torch import Tensor

from elip_plugin.hosts.lavis import models
from elip_plugin.hosts.lavis.compat.offline import construction, read_settings
from elip_plugin.hosts.versions import installed_version
from elip_plugin.patching.swap import Patched

gc.freeze()  # what was imported is never garbage, and looking through it takes a third of the time

CAPTIONS = [
    "a red cat on the sofa",
    "the dog sits on it",
    "two blue cat runs",
    "what is this red picture of a dog",
]
OTHERS = [
    "no dog runs",
    "a blue picture of the sofa sits",
    "is it what",
    "yes two red dog on a cat",
]
ANSWERS = ["yes", "no", "a red dog", "two", "blue"]
WORDS = sorted({word for text in CAPTIONS + OTHERS for word in text.split()})

PLANNED = [17] * 2 + [16] * 2 + [12] * 6 + [8] * 2
FULL = [17] * 12

VIT = {"width": 32, "depth": 12, "heads": 2, "patch_size": 16}
# The wider start makes captions differ in the narrow text encoder as trained ones do.
BERT = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.2,
}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 64, "layers": 12},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 2,
    },
}
"""Its text transformer has `layers` other than the tower's."""

ARCHS = models.ARCHS

MOMENTUM = [a for a in ARCHS if a.endswith(("_pretrain", "_retrieval"))] + [
    "albef_vqa",
    "albef_nlvr",
    "albef_classification",
    "blip_classification",
]
"""Archs with a momentum encoder."""

LAVIS_LACKS: dict[str, dict[str, Any]] = {
    # A process group, taken for granted.
    "clip": {
        "torch.distributed.get_world_size": lambda: 1,
        "torch.distributed.get_rank": lambda: 0,
    },
    # A field in the record of its outputs.
    "blip_classification": {
        "lavis.models.blip_models.blip_classification.BlipIntermediateOutput": (
            AlbefIntermediateOutput
        ),
    },
}
"""What LAVIS' own models need to train at all; ours do not."""

WRITES = installed_version("transformers") < (4, 27)
"""Whether LAVIS can write captions and answers here."""

EXTRACTORS = ["albef_feature_extractor", "blip_feature_extractor"]
"""Archs whose only method takes no gradient."""


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


@functools.cache
def vocabulary() -> str:
    """Path of a vocabulary that holds the words of this file."""
    path = Path(_folder().name) / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    return str(path)


def is_clip(arch: str) -> bool:
    return arch.startswith("clip")


def bert_sizes(arch: str) -> dict[str, Any]:
    """Sizes of an arch's text encoder: BLIP's may have fewer layers, LAVIS' ALBEF counts on 12."""
    return {**BERT, **({"num_hidden_layers": 4} if arch.startswith("blip") else {})}


def section(arch: str, **changes: Any) -> Any:
    """LAVIS' model section for a small random model; a change to None takes a key away."""
    if is_clip(arch):
        keys: dict[str, Any] = {"arch": arch, "clip": CLIP}
    else:
        cls = ARCHS[arch]
        default = cls.default_config_path(next(iter(cls.replaces.PRETRAINED_MODEL_CONFIG_DICT)))
        keys = {
            **OmegaConf.to_container(OmegaConf.load(default).model),
            "tokenizer": vocabulary(),
            "init": "random",
            "vit": VIT,
            "bert": {**bert_sizes(arch), **STILL},
            "image_size": 64,
            "vit_grad_ckpt": False,
            "load_finetuned": False,
            "pretrained": None,
            "queue_size": 8,
            "embed_dim": 16,
            "num_classes": 3,
            "mlm_mask_prob": 0.5,
        }
    keys = {**keys, **changes}
    return OmegaConf.create(
        {
            key: keys[key]
            for key in keys
            if keys[key] is not None or key in ("pretrained", "finetuned")
        }
    )


def pruned(arch: str, seed: int = 0, **changes: Any) -> Any:
    """A pruned model in training mode; equal seeds give equal weights."""
    torch.manual_seed(seed)
    with quiet():
        return ARCHS[arch].from_config(section(arch, **changes)).train()


def stock(arch: str, seed: int = 0, **changes: Any) -> Any:
    """LAVIS' own model, with the weights of the pruned model of the same seed."""
    cls = ARCHS[arch]
    cfg = section(arch, **changes)
    settings = read_settings(cfg, cls.replaces, others=["elip"])
    torch.manual_seed(seed)
    with quiet(), construction(settings, cls.replaces):
        made = cls.replaces(**settings.clip) if is_clip(arch) else cls.replaces.from_config(cfg)
    return made.train()


@contextmanager
def quiet() -> Iterator[None]:
    """LAVIS prints what it ties and warns where it loads nothing."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def samples(captions: list[str] | None = None, seed: int = 1) -> dict[str, Any]:
    """Samples that hold what any arch asks for; LAVIS adds to them, so they are made anew."""
    generator = torch.Generator().manual_seed(seed)
    image, image0, image1 = torch.randn(3, 4, 3, 64, 64, generator=generator)
    return {
        "image": image,
        "image0": image0,
        "image1": image1,
        "text_input": list(captions or CAPTIONS),
        "image_id": torch.tensor([1, 2, 3, 4]),
        "label": torch.tensor([0, 1, 0, 1]),
        "answer": ["yes", "no", "a red dog", "two", "blue cat"],
        "n_answers": torch.tensor([1, 2, 1, 1]),
        "weight": torch.tensor([1.0, 0.5, 0.5, 1.0, 1.0]),
        "epoch": 1,
        "iters": 0,
        "num_iters_per_epoch": 10,
    }


def run(arch: str, model: Any, given: dict[str, Any] | None = None, seed: int = 7) -> Any:
    """The arch's forward, by the method that images and text enter through."""
    given = samples() if given is None else given
    torch.manual_seed(seed)
    if arch == "clip_feature_extractor" or arch in EXTRACTORS:
        return model.extract_features(given)
    with ExitStack() as stack:
        if not isinstance(model, Patched):
            for name, value in LAVIS_LACKS.get(arch, {}).items():
                stack.enter_context(mock.patch(name, value))
        return model(given)


def loss_of(arch: str, output: Any) -> Tensor:
    """The loss of a forward, or one made up where LAVIS leaves it to others."""
    if arch == "blip_image_text_matching":
        return F.cross_entropy(output, samples()["label"])
    if arch == "clip_feature_extractor":
        return output.image_embeds.square().mean() + output.text_embeds.square().mean()
    loss: Tensor = output["loss"]
    return loss


def step(arch: str, model: Any, given: dict[str, Any] | None = None) -> tuple[Any, Any]:
    """A training step: all tensors of the output, and the gradients by name."""
    output = run(arch, model, given)
    if arch in EXTRACTORS:
        return tensors(output), {}
    model.zero_grad()
    loss_of(arch, output).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return tensors(output), gradients


def evaluate(arch: str, model: Any, given: dict[str, Any] | None = None) -> dict[str, Any]:
    """What LAVIS' tasks call in evaluation, each with all it returns."""
    made: dict[str, Any] = {}
    given = samples() if given is None else given
    torch.manual_seed(7)
    with torch.no_grad(), quiet():
        if hasattr(model, "predict_answers"):
            made["rank"] = model.predict_answers(dict(given), answer_list=ANSWERS)
        if arch == "blip_vqa" and WRITES:
            made["generate"] = model.predict_answers(dict(given), inference_method="generate")
        if arch.endswith(("_nlvr", "_classification")):
            made["predict"] = model.predict(dict(given))
        if arch == "blip_caption" and WRITES:
            made["beams"] = model.generate(dict(given), max_length=12, min_length=5)
            made["nucleus"] = model.generate(
                dict(given), use_nucleus_sampling=True, max_length=12, min_length=5, num_captions=2
            )
        if arch == "blip_caption" and not WRITES:
            made["loss"] = model(dict(given))["loss"]
        if arch == "blip_image_text_matching":
            made["itm"] = model(dict(given))
            made["itc"] = model(dict(given), match_head="itc")
        if arch in EXTRACTORS:
            for mode in ("multimodal", "image", "text"):
                made[mode] = model.extract_features(dict(given), mode=mode)
        if is_clip(arch):
            made["features"] = model.extract_features(dict(given))
            model.classifier = torch.randn(32, 3)
            made["predict"] = model.predict(dict(given))
            model.classifier = None
        if hasattr(model, "compute_sim_matrix"):
            made["scores"] = model.compute_sim_matrix(
                loader(given), task_cfg=SimpleNamespace(k_test=2)
            )
    return made


def loader(given: Mapping[str, Any]) -> Any:
    """A loader as LAVIS' retrieval evaluation takes it, of two batches."""

    class Loader:
        dataset = SimpleNamespace(text=given["text_input"], image=list(given["image"]))

        def __iter__(self) -> Iterator[dict[str, Any]]:
            yield from ({"image": part} for part in given["image"].split(2))

    return Loader()
