"""What LAVIS fetches while it builds a model, taken from local files or random instead.

LAVIS hard-codes the names of what it fetches. While one of our models is built, and only then,
these lookups go through here; what is neither given nor to be had is named.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lavis.models import AlbefNLVR, BlipPretrain, med
from lavis.models.albef_models import AlbefBase
from lavis.models.base_model import BaseModel
from lavis.models.clip_models import model as clip_model
from lavis.models.vit import VisionTransformerEncoder, interpolate_pos_embed
from torch import nn
from transformers import BertConfig, BertTokenizer

from elip_plugin.errors import ConfigError
from elip_plugin.hosts.lavis.runtime.settings import RANDOM, Settings
from elip_plugin.patching.monkeypatch import replaced

log = logging.getLogger("elip_plugin")


@contextmanager
def construction(settings: Settings, base: Any) -> Iterator[None]:
    """Build LAVIS' models by our settings inside the context.

    Args:
        settings: Our keys of the model section.
        base: LAVIS' class that is being built.

    Yields:
        Nothing.

    Raises:
        ConfigError: If something could not be fetched, or a given path was of no use.
    """
    used: set[str] = set()
    seams: list[tuple[Any, str, Callable[..., Any]]] = [
        (VisionTransformerEncoder, "from_config", _tower),
        (med.BertPreTrainedModel, "from_pretrained", _bert),
        (BertTokenizer, "from_pretrained", _tokenizer),
    ]
    with ExitStack() as stack:
        for owner, name, ours in seams:
            theirs = getattr(owner, name).__func__
            method = classmethod(partial(_call, ours, theirs, settings, used))
            stack.enter_context(replaced(owner, name, method))
        config_class: Any = BertConfig
        read = partial(
            _read_bert, config_class.from_json_file.__func__, _bert_sizes(settings, base)
        )
        stack.enter_context(replaced(BertConfig, "from_json_file", classmethod(read)))
        for owner, name, load in _checkpoint_seams(base):
            stack.enter_context(replaced(owner, name, load))
        yield
    idle = [part for part, value in settings.init.items() if value != RANDOM and part not in used]
    if idle:
        raise ConfigError(
            f"init: {idle} given, but {base.__name__} takes these weights from 'pretrained' or "
            "'finetuned' only; set those to a local checkpoint"
        )


def _call(
    ours: Callable[..., Any],
    theirs: Any,
    settings: Settings,
    used: set[str],
    cls: Any,
    *a: Any,
    **kw: Any,
) -> Any:
    return ours(partial(theirs, cls), settings, used, cls, *a, **kw)


def _fetch(what: str, instead: str, get: Callable[[], Any]) -> Any:
    """Get something that LAVIS fetches, and name it if it cannot be had."""
    try:
        return get()
    except OSError as error:  # what both urllib and requests raise without a network
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"{what} could not be fetched ({first}); {instead}") from error


def _tower(
    theirs: Any,
    settings: Settings,
    used: set[str],
    cls: Any,
    cfg: Any,
    from_pretrained: bool = False,
) -> Any:
    init = settings.init.get("vision")
    if settings.vit and from_pretrained and init is None:
        raise ConfigError(
            "vit gives the tower its own sizes, for which there are no weights to fetch: set "
            "init: {vision: random}, or to a local checkpoint of these sizes"
        )
    if from_pretrained and init is None:
        return _fetch(
            f"the initial weights of the {cfg.get('vit_type', 'base')} vision tower",
            "set init: {vision: random}, or to a local checkpoint",
            lambda: theirs(cfg, from_pretrained=True),
        )
    tower = small_tower(cls, cfg, settings.vit) if settings.vit else theirs(cfg)
    if init not in (None, RANDOM):
        used.add("vision")
        _load_tower(tower, str(init))
    return tower


def small_tower(cls: Any, cfg: Any, sizes: Mapping[str, int]) -> Any:
    """Build a tower that is not LAVIS' base or large.

    Args:
        cls: LAVIS' tower class.
        cfg: LAVIS' model section.
        sizes: Our `vit` section.

    Returns:
        The tower, of random weights.
    """
    eps = cfg.get("vit_layer_norm_epsilon", -1)
    tower = cls(
        img_size=cfg.get("image_size", 384),
        patch_size=sizes.get("patch_size", 16),
        embed_dim=sizes.get("width", 768),
        depth=sizes.get("depth", 12),
        num_heads=sizes.get("heads", 12),
        drop_path_rate=cfg.get("vit_drop_path_rate", 0),
        norm_layer=None if eps == -1 else partial(nn.LayerNorm, eps=eps),
    )
    tower.vision_width = tower.embed_dim
    return tower


def _load_tower(tower: Any, path: str) -> None:
    try:
        state = torch.load(path, map_location="cpu")
    except Exception as error:  # of as many kinds as there are kinds of broken files
        raise ConfigError(f"init: vision: {path} cannot be read as weights: {error}") from error
    state = state.get("model", state)
    prefix = "visual_encoder."
    if any(key.startswith(prefix) for key in state):
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if "pos_embed" in state:
        state["pos_embed"] = interpolate_pos_embed(state["pos_embed"], tower)
    try:
        missing = tower.load_state_dict(state, strict=False).missing_keys
    except RuntimeError as error:
        raise ConfigError(f"init: vision: {path} does not fit the tower: {error}") from error
    if missing:
        raise ConfigError(
            f"init: vision: {path} lacks {len(missing)} of the tower's weights, e.g. {missing[:3]}"
        )


def _bert(
    theirs: Any, settings: Settings, used: set[str], cls: Any, name: Any, *args: Any, **kw: Any
) -> Any:
    init = settings.init.get("text")
    if init == RANDOM:
        return cls(kw.pop("config"), *args, **kw)
    if init is not None:
        used.add("text")
        return theirs(str(init), *args, **kw)
    return _fetch(
        f"the text encoder's initial weights, {name!r},",
        "set init: {text: random}, or to a local folder of such a model",
        lambda: theirs(name, *args, **kw),
    )


def _tokenizer(
    theirs: Any, settings: Settings, used: set[str], cls: Any, name: Any, *args: Any, **kw: Any
) -> Any:
    if settings.tokenizer is None:
        return _fetch(
            f"the tokenizer {name!r}",
            "set tokenizer to a local vocab.txt or tokenizer folder",
            lambda: theirs(name, *args, **kw),
        )
    path = Path(settings.tokenizer)
    if path.is_dir():
        return theirs(str(path), *args, **kw)
    return cls(vocab_file=str(path))


def _bert_sizes(settings: Settings, base: Any) -> dict[str, Any]:
    """Values for BERT's config: the given ones, and those that follow from other settings."""
    sizes: dict[str, Any] = {}
    if settings.tokenizer is not None:
        tokenizer = base.init_tokenizer()
        # BLIP's pre-training begins with a plain BERT and makes room for its own tokens itself.
        sizes["vocab_size"] = tokenizer.vocab_size if base is BlipPretrain else len(tokenizer)
    if "width" in settings.vit:
        sizes["encoder_width"] = settings.vit["width"]
    return {**sizes, **settings.bert}


def _read_bert(theirs: Any, sizes: Mapping[str, Any], cls: Any, path: Any) -> Any:
    config = theirs(cls, path)
    unknown = [key for key in sizes if not hasattr(config, key)]
    if unknown:
        raise ConfigError(f"bert: {unknown} not known; {path} says what there is")
    for key, value in sizes.items():
        setattr(config, key, value)
    return config


def _checkpoint_seams(base: Any) -> list[tuple[Any, str, Callable[..., Any]]]:
    """Where whole checkpoints come from: LAVIS' three ways to load one, and CLIP's download."""
    choose, finetuned = BaseModel.load_checkpoint_from_config, BaseModel.load_checkpoint
    download = clip_model.download_pretrained
    key = "finetuned" if hasattr(base, "load_from_pretrained") else "pretrained"
    seams: list[tuple[Any, str, Callable[..., Any]]] = [
        (
            BaseModel,
            "load_checkpoint_from_config",
            lambda model, cfg, **kw: _choose_checkpoint(choose, model, cfg, **kw),
        ),
        (
            BaseModel,
            "load_checkpoint",
            lambda model, url_or_filename: _load_checkpoint(key, finetuned, model, url_or_filename),
        ),
        (
            clip_model,
            "download_pretrained",
            lambda url: _fetch(
                f"the checkpoint {url}",
                "set pretrained to a local file, or give sizes by clip",
                lambda: download(url),
            ),
        ),
    ]
    if hasattr(base, "load_from_pretrained"):
        pretrained = _load_nlvr if base is AlbefNLVR else base.load_from_pretrained
        seams.append(
            (
                base,
                "load_from_pretrained",
                lambda model, url_or_filename, **kw: _load_checkpoint(
                    "pretrained", pretrained, model, url_or_filename, **kw
                ),
            )
        )
    return seams


def _choose_checkpoint(theirs: Any, model: Any, cfg: Any, **kw: Any) -> Any:
    if cfg.get("load_finetuned", True):
        if cfg.get("finetuned", None) is None:
            raise ConfigError(
                "load_finetuned is true, but finetuned names no checkpoint: name one, or set "
                "load_finetuned: False"
            )
    elif cfg.get("pretrained", None) is None:
        log.info("No weights are loaded: pretrained is null.")
        return None
    return theirs(model, cfg, **kw)


def _load_checkpoint(key: str, theirs: Any, model: Any, where: Any, **kw: Any) -> Any:
    if "://" not in str(where) and not Path(str(where)).is_file():
        raise ConfigError(
            f"{key} is {str(where)!r}, which is no file: name a local checkpoint or a URL"
        )
    return _fetch(
        f"the checkpoint {where}",
        f"set {key} to a local file, or load_finetuned: False and pretrained: null",
        lambda: theirs(model, where, **kw),
    )


def _load_nlvr(model: Any, where: Any, use_distill: bool = True) -> Any:
    """Do what `AlbefNLVR.load_from_pretrained` means: it unpacks two values, and gets one."""
    loaded = AlbefBase.load_from_pretrained(model, where)
    if use_distill and any("_m" in key for key in loaded.missing_keys):
        model.copy_params()
    return loaded
