"""Our keys in LAVIS' model section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from elip_plugin.errors import ConfigError, nearest

BERT_FAMILY = ("tokenizer", "init", "vit", "bert")
CLIP_FAMILY = ("clip",)


@dataclass(frozen=True)
class Settings:
    """The values of our keys in a model section; what is left out is what LAVIS has or fetches."""

    tokenizer: str | None = None  # a vocabulary file or a tokenizer folder
    init: str | None = None  # "random": no initial weights are fetched
    vit: Mapping[str, int] = field(default_factory=dict)  # sizes of a small tower
    bert: Mapping[str, Any] = field(default_factory=dict)  # in place of the file's values
    clip: Mapping[str, Any] = field(default_factory=dict)  # a whole config of LAVIS' CLIP


def read_settings(cfg: DictConfig, family: Sequence[str], others: Sequence[str] = ()) -> Settings:
    """Read our keys of a family in LAVIS' model section; `others` are read elsewhere.

    LAVIS takes any key in silence. So one that is nearly ours is refused, with a ConfigError.
    """
    values: dict[Any, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
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
