"""Random weights and local files in place of what LAVIS fetches while it builds a model.

LAVIS hard-codes the names of what it fetches. While one of our models is built, and only then,
these lookups go through `_Sources`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from inspect import getattr_static
from pathlib import Path
from threading import RLock, get_ident
from typing import Any

import torch
from lavis.models import CLIP, BlipPretrain, med
from lavis.models.albef_models import AlbefBase
from lavis.models.base_model import BaseModel
from lavis.models.vit import VisionTransformerEncoder
from omegaconf import DictConfig, OmegaConf
from transformers import BertConfig, BertTokenizer

from elip_plugin.errors import ConfigError, nearest
from elip_plugin.patching.checkpoints import load_checkpoint
from elip_plugin.patching.monkeypatch import replaced

log = logging.getLogger("elip_plugin")

_building = RLock()

BERT_FAMILY = ("tokenizer", "init", "vit", "bert")
CLIP_FAMILY = ("clip",)
"""Our keys in the model sections of ALBEF and BLIP, and of CLIP."""


@dataclass(frozen=True)
class Settings:
    """The values of our keys in a model section; what is left out is what LAVIS has or fetches."""

    tokenizer: str | None = None  # a vocabulary file or a tokenizer folder
    init: str | None = None  # "random": no initial weights are fetched
    vit: Mapping[str, int] = field(default_factory=dict)  # sizes of a small tower
    bert: Mapping[str, Any] = field(default_factory=dict)  # in place of the file's values
    clip: Mapping[str, Any] = field(default_factory=dict)  # a whole config of LAVIS' CLIP


def read_settings(cfg: DictConfig, base: Any, others: Sequence[str] = ()) -> Settings:
    """Read our keys in the model section of LAVIS' class `base`; `others` are read elsewhere.

    LAVIS takes any key in silence. So one that is nearly ours is refused, with a ConfigError.
    """
    values: dict[Any, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    family = CLIP_FAMILY if issubclass(base, CLIP) else BERT_FAMILY
    known = [*others, *family]
    for key in sorted(map(str, values.keys() - {*known})):
        near = any(SequenceMatcher(None, name, key).ratio() >= 0.75 for name in known)
        if near or key in (*BERT_FAMILY, *CLIP_FAMILY):
            raise ConfigError(
                f"LAVIS' model section: key {key!r} is not known for this arch; "
                f"{nearest(key, known)}"
            )
    settings = Settings(**{key: values[key] for key in family if values.get(key) is not None})
    if settings.init not in (None, "random"):
        raise ConfigError(
            f"init must be random, or be left out, got {settings.init!r}; weights of your own are "
            "named by pretrained"
        )
    if settings.tokenizer and not Path(settings.tokenizer).exists():
        raise ConfigError(
            f"tokenizer {settings.tokenizer!r} does not exist: give a vocab.txt or a tokenizer "
            "folder"
        )
    return settings


def build_base(base: Any, cfg: DictConfig, settings: Settings) -> Any:
    """Build a model of LAVIS' class `base` by its model section and our settings.

    LAVIS would wrap the tower's layers for `vit_grad_ckpt` before it copies them into the momentum
    encoder, and the copies would run the tower's weights. So none is wrapped here; see
    `checkpoint_blocks`.
    """
    if settings.clip or not issubclass(base, CLIP):  # whose `pretrained` may be a name
        _check_file(cfg)
    with construction(settings, base):
        if not settings.clip:
            return base.from_config(OmegaConf.merge(cfg, {"vit_grad_ckpt": False}))
        model = base(**settings.clip)
        missing = cfg.get("pretrained") and model.load_checkpoint(cfg.pretrained).missing_keys
    if missing:
        raise ConfigError(
            f"pretrained: {cfg.pretrained} lacks {len(missing)} of the model's weights, e.g. "
            f"{missing[:3]}"
        )
    return model


def checkpoint_blocks(tower: Any, last: int) -> None:
    """Checkpoint the attention and the MLP of the last blocks, as LAVIS does."""
    from fairscale.nn.checkpoint.checkpoint_activations import checkpoint_wrapper

    for block in tower.blocks[len(tower.blocks) - last :]:
        block.attn, block.mlp = checkpoint_wrapper(block.attn), checkpoint_wrapper(block.mlp)


@contextmanager
def construction(settings: Settings, base: Any) -> Iterator[None]:
    """Build a model of LAVIS' class `base` by our settings inside the context.

    One thread at a time; what others build or load meanwhile goes through LAVIS' own lookups.
    """
    with _building, ExitStack() as stack:
        for owner, name, ours in _Sources(settings, base).lookups():
            stack.enter_context(replaced(owner, name, _in_this_thread(owner, name, ours)))
        try:
            yield
        except OSError as error:  # what both urllib and requests raise without a network
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConfigError(
                f"a part of {base.__name__} could not be fetched ({reason}); without a network "
                "set init: random, tokenizer to a local vocab.txt or tokenizer folder, and "
                "the checkpoint to a local file, or load_finetuned: False and pretrained: null"
            ) from error


def _in_this_thread(owner: Any, name: str, ours: Callable[..., Any]) -> Any:
    """Return a lookup that is ours in this thread, and LAVIS' own in all others."""
    theirs = getattr_static(owner, name)
    function, here = getattr(theirs, "__func__", theirs), get_ident()

    def lookup(*args: Any, **options: Any) -> Any:
        if get_ident() != here:
            return function(*args, **options)
        return ours(function, *args, **options)

    return classmethod(lookup) if isinstance(theirs, classmethod) else lookup


class _Sources:
    """Where the parts of a model come from; each method takes LAVIS' own lookup first."""

    def __init__(self, settings: Settings, base: Any) -> None:
        self.settings, self.base = settings, base

    def lookups(self) -> Iterator[tuple[Any, str, Callable[..., Any]]]:
        """Yield owner and name of each lookup, and what takes its place."""
        yield VisionTransformerEncoder, "from_config", self.tower
        yield BertConfig, "from_json_file", self.bert_config
        if self.settings.init:
            yield med.BertPreTrainedModel, "from_pretrained", self.random_bert
        if self.settings.tokenizer:
            yield BertTokenizer, "from_pretrained", self.local_tokenizer
        yield torch, "load", _load
        yield torch, "linspace", _on_cpu
        yield BaseModel, "load_checkpoint_from_config", _choose_weights

    def tower(self, theirs: Any, cls: Any, cfg: Any, from_pretrained: bool = False) -> Any:
        """Build a vision tower of the given sizes, with random weights if so asked."""
        sizes = self.settings.vit
        if not sizes:
            return theirs(cls, cfg, from_pretrained and not self.settings.init)
        names = {"width": "embed_dim", "heads": "num_heads"}
        ours = {names.get(key, key): value for key, value in sizes.items()}
        # LAVIS' base tower, but for these sizes.
        base = OmegaConf.merge(cfg, {"vit_type": "base"})
        tower = theirs(lambda **options: cls(**{**options, **ours}), base)
        tower.vision_width = tower.embed_dim
        return tower

    def random_bert(self, theirs: Any, cls: Any, name: Any, *args: Any, **options: Any) -> Any:
        """Build a text encoder with random weights."""
        return cls(options.pop("config"), *args, **options)

    def bert_config(self, theirs: Any, cls: Any, path: Any) -> Any:
        """Read BERT's config, with the given sizes and those that follow from other settings."""
        config, sizes = theirs(cls, path), {}
        if self.settings.tokenizer is not None:
            words = self.base.init_tokenizer()
            # BLIP's pre-training begins with a plain BERT and adds its own tokens itself.
            sizes["vocab_size"] = words.vocab_size if self.base is BlipPretrain else len(words)
        if "width" in self.settings.vit:
            sizes["encoder_width"] = self.settings.vit["width"]
        sizes.update(self.settings.bert)
        unknown = [key for key in sizes if not hasattr(config, key)]
        if unknown:
            raise ConfigError(f"bert: {unknown} not known; {path} lists the keys")
        for key, value in sizes.items():
            setattr(config, key, value)
        return config

    def local_tokenizer(self, theirs: Any, cls: Any, name: Any, *args: Any, **options: Any) -> Any:
        """Load a tokenizer from a vocabulary or a folder."""
        path = Path(str(self.settings.tokenizer))
        if path.is_dir():
            return theirs(cls, str(path), *args, **options)
        return cls(vocab_file=str(path))


def _check_file(cfg: Any) -> None:
    """Refuse a checkpoint that is to be loaded and is not there."""
    finetuned = cfg.get("load_finetuned", True) and cfg.get("finetuned")
    key = "finetuned" if finetuned else "pretrained"
    path = str(cfg.get(key) or "")
    if path and "://" not in path and not Path(path).is_file():
        raise ConfigError(f"{key} is {path!r}, which is no file: name a local checkpoint or a URL")


def _load(theirs: Any, file: Any, *args: Any, **options: Any) -> Any:
    """Load a file for LAVIS, without unpickling more than weights."""
    if options.get("weights_only") or not isinstance(file, (str, Path)):
        return theirs(file, *args, **options)
    return load_checkpoint(file)


def _on_cpu(theirs: Any, *args: Any, **options: Any) -> Any:
    """Make a tensor whose numbers LAVIS reads while it builds a tower, which may be on meta."""
    return theirs(*args, **{**options, "device": "cpu"})


def _choose_weights(theirs: Any, model: Any, cfg: Any, **options: Any) -> Any:
    """Load the checkpoint that a model section names, if it names one."""
    if not cfg.get("load_finetuned", True) and cfg.get("pretrained") is None:
        log.info("No weights are loaded: pretrained is null.")
        return None
    return theirs(model, cfg, **options)


def load_nlvr(model: Any, url_or_filename: Any, use_distill: bool = True) -> Any:
    """Do what `AlbefNLVR.load_from_pretrained` is meant to."""
    loaded = AlbefBase.load_from_pretrained(model, url_or_filename)
    if use_distill and any("_m" in key for key in loaded.missing_keys):
        model.copy_params()
    return loaded
