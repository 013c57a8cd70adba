"""Our keys in LAVIS' model section, read and checked before anything is built."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from elip_plugin.errors import ConfigError, join_faults, nearest

BERT_FAMILY = ("tokenizer", "init", "vit", "bert")
CLIP_FAMILY = ("clip",)
SECTIONS: dict[str, tuple[str, ...] | None] = {
    "vit": ("width", "depth", "heads", "patch_size"),
    "bert": None,
    "clip": ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu"),
}
"""The keys of our sections; those of `bert` are checked when BERT's config is read."""


@dataclass(frozen=True)
class Settings:
    """The values of our keys in a model section; what is left out is what LAVIS has or fetches."""

    tokenizer: str | None = None  # a vocabulary file or a tokenizer folder
    init: str | None = None  # "random": no initial weights are fetched
    vit: Mapping[str, int] = field(default_factory=dict)  # sizes of a small tower
    bert: Mapping[str, Any] = field(default_factory=dict)  # in place of the file's values
    clip: Mapping[str, Any] = field(default_factory=dict)  # a whole config of LAVIS' CLIP


def read_settings(cfg: DictConfig, family: Sequence[str], others: Sequence[str] = ()) -> Settings:
    """Read our keys of a family in LAVIS' model section; `swaps` are read elsewhere.

    Raises a ConfigError with every fault at once.
    """
    values: dict[Any, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    allowed = [*others, *family]
    faults = _slips(values.keys() - {*allowed, *BERT_FAMILY, *CLIP_FAMILY}, allowed)
    faults += [
        f"key {key!r} does not suit this arch; ours are {allowed}"
        for key in (*BERT_FAMILY, *CLIP_FAMILY)
        if key in values and key not in allowed
    ]
    given = {key: values[key] for key in family if values.get(key) is not None}
    faults += _section_faults(given) or _value_faults(given)
    if faults:
        raise ConfigError(join_faults("LAVIS' model section", faults))
    return Settings(**given)


def _slips(given: Iterable[Any], known: Sequence[str]) -> list[str]:
    """Name unknown keys that are nearly ours; LAVIS takes any key in silence."""
    return [
        f"key {key!r} is not known: {nearest(key, known)}"
        for key in sorted(map(str, given))
        if any(SequenceMatcher(None, name, key).ratio() >= 0.75 for name in known)
    ]


def _section_faults(given: Mapping[str, Any]) -> list[str]:
    faults = []
    for name, keys in SECTIONS.items():
        section = given.get(name, {})
        if not isinstance(section, Mapping):
            faults.append(f"{name} must be a mapping, got {section!r}")
            continue
        unknown = [key for key in section if keys is not None and key not in keys]
        faults += [f"{name}: key {k!r} is not known; {nearest(k, keys or ())}" for k in unknown]
    return faults


def _value_faults(given: Mapping[str, Any]) -> list[str]:
    vit, clip = given.get("vit", {}), given.get("clip")
    faults = [
        f"vit: {key} must be an integer from 1 up, got {value!r}"
        for key, value in vit.items()
        if not isinstance(value, int) or isinstance(value, bool) or value < 1
    ]
    if {"heads", "width"} <= vit.keys() and not faults and vit["width"] % vit["heads"]:
        faults.append(f"vit: width {vit['width']} is not a multiple of heads {vit['heads']}")
    if vit and "init" not in given:
        faults.append(
            "vit gives the tower its own sizes, without weights to fetch: set init: random"
        )
    if given.get("init", "random") != "random":
        faults.append(
            f"init must be random, or be left out, got {given['init']!r}; weights of your own are "
            "named by pretrained"
        )
    tokenizer = given.get("tokenizer")
    if tokenizer is not None and not Path(str(tokenizer)).exists():
        faults.append(
            f"tokenizer {tokenizer!r} does not exist: give a vocab.txt or a tokenizer folder"
        )
    needed = ("embed_dim", "vision_cfg", "text_cfg")
    missing = [key for key in needed if clip is not None and key not in clip]
    return [*faults, f"clip: {missing} missing"] if missing else faults
