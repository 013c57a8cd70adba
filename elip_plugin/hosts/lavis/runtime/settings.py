"""Our keys in LAVIS' model section, read and checked before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from elip_plugin.config import ElipConfig
from elip_plugin.errors import ConfigError, joined

RANDOM = "random"
SECTION = "LAVIS' model section"

BERT_FAMILY = ("elip", "tokenizer", "init", "vit", "bert")
CLIP_FAMILY = ("elip", "clip")
VIT_KEYS = ("width", "depth", "heads", "patch_size")
CLIP_KEYS = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")
INIT_KEYS = ("vision", "text")


@dataclass(frozen=True)
class Settings:
    """What a model section says about our own keys.

    Attributes:
        config: What to prune (`elip`).
        tokenizer: Vocabulary file or tokenizer folder; None for LAVIS' bert-base-uncased.
        init: Initial weights by part, "vision" and "text": "random" or a local path; a part
            that is missing is what LAVIS fetches.
        vit: Sizes of a tower smaller than LAVIS' own: width, depth, heads, patch_size.
        bert: Values that replace those of the file at `med_config_path`.
        clip: A whole model config for LAVIS' CLIP, in place of one of its names.
    """

    config: ElipConfig
    tokenizer: str | None = None
    init: Mapping[str, str] = field(default_factory=dict)
    vit: Mapping[str, int] = field(default_factory=dict)
    bert: Mapping[str, Any] = field(default_factory=dict)
    clip: Mapping[str, Any] = field(default_factory=dict)


def read_settings(twin: Any, cfg: DictConfig) -> Settings:
    """Read our keys.

    Args:
        twin: A class in `elip_plugin.hosts.lavis.models`.
        cfg: LAVIS' model section.

    Returns:
        The settings.

    Raises:
        ConfigError: Names every fault at once.
    """
    values = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(values, dict)
    allowed = CLIP_FAMILY if hasattr(twin, "encode_image") else BERT_FAMILY
    faults = _misspelt(values, allowed) + _unsuited(values, allowed)
    given = {key: values[key] for key in allowed if values.get(key) is not None}
    faults += _section_faults(given, "vit", VIT_KEYS) + _section_faults(given, "init", INIT_KEYS)
    faults += _section_faults(given, "clip", CLIP_KEYS) + _section_faults(given, "bert", None)
    if not faults:
        faults = _value_faults(given)
    if faults:
        raise ConfigError(joined(SECTION, faults))
    config = _pruning(twin, given.pop("elip", None))
    return Settings(config, **given)


def _pruning(twin: Any, mapping: Any) -> ElipConfig:
    if twin.guided_by != "nothing":
        return ElipConfig.from_mapping(mapping)
    # Nothing guides this model, so where the section is silent the image alone chooses.
    values = {"preset": mapping} if isinstance(mapping, str) else dict(mapping or {})
    return ElipConfig.from_mapping({"text_weight": 0.0, **values})


def _misspelt(values: Mapping[Any, Any], allowed: tuple[str, ...]) -> list[str]:
    """LAVIS takes any key in silence, so a slip in one of ours would go unseen."""
    faults = []
    for key in map(str, values):
        near = get_close_matches(key, allowed, n=1, cutoff=0.74)
        if near and key not in BERT_FAMILY + CLIP_FAMILY:
            faults.append(f"key {key!r} is not known: did you mean {near[0]!r}?")
    return faults


def _unsuited(values: Mapping[Any, Any], allowed: tuple[str, ...]) -> list[str]:
    others = [key for key in BERT_FAMILY + CLIP_FAMILY if key in values and key not in allowed]
    return [f"key {key!r} does not suit this arch; ours are {list(allowed)}" for key in others]


def _section_faults(given: Mapping[str, Any], name: str, keys: tuple[str, ...] | None) -> list[str]:
    section = given.get(name)
    if section is None:
        return []
    if not isinstance(section, Mapping):
        return [f"{name} must be a mapping, got {section!r}"]
    unknown = [key for key in section if keys is not None and key not in keys]
    return [f"{name}: key {key!r} is not known; keys are {list(keys or ())}" for key in unknown]


def _value_faults(given: Mapping[str, Any]) -> list[str]:
    faults = []
    for key, value in given.get("vit", {}).items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            faults.append(f"vit: {key} must be an integer from 1 up, got {value!r}")
    vit, init = given.get("vit", {}), given.get("init", {})
    if "heads" in vit and "width" in vit and not faults and vit["width"] % vit["heads"]:
        faults.append(f"vit: width {vit['width']} is not a multiple of heads {vit['heads']}")
    for part, value in init.items():
        path, kind = Path(str(value)), "file" if part == "vision" else "folder"
        if value != RANDOM and not (path.is_file() if kind == "file" else path.is_dir()):
            faults.append(f"init: {part} is {value!r}: give 'random' or a {kind} that exists")
    tokenizer = given.get("tokenizer")
    if tokenizer is not None and not Path(str(tokenizer)).exists():
        faults.append(
            f"tokenizer {tokenizer!r} does not exist: give a vocab.txt or a tokenizer folder "
            "(`elip data vocab` makes one from your captions)"
        )
    missing = [k for k in CLIP_KEYS[:3] if "clip" in given and k not in given["clip"]]
    if missing:
        faults.append(f"clip: {missing} missing")
    return faults
