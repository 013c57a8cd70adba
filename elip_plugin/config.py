"""What to prune: stages, text weight, merging, evaluation mode; presets; mappings."""

from __future__ import annotations

import functools
import json
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from elip_plugin.errors import (
    ConfigError,
    ElipDeprecationWarning,
    join_faults,
    nearest,
    shown,
)
from elip_plugin.reducers import (
    DEFAULT_REDUCER,
    Reducer,
    find_reducer,
    make_reducer,
    option_defaults,
    option_faults,
    reducers,
)

EVAL_MODES = ("full", "image", "text")
GUIDE_SOURCES = ("caption", "batch")
"""Whose texts guide an image: its own, or all of the batch by their similarity to the image."""

SCHEDULES = ("warmup", "final_unpruned", "text_anneal")
"""Shares of the training after which something changes."""

RENAMED = {
    "eval": "eval_mode",
    "guide": "guide_source",
    "warm_in": "warmup",
    "full_finish": "final_unpruned",
}
"""Keys of version 0.1, still read with a DeprecationWarning."""

DEFAULT_PRESET = "paper"

MOST_VALUES = 100_000
"""Values of a YAML file at most, those of an alias counted each time that it is used."""

FILES = (".json", ".yaml", ".yml")
"""Ends of a string that names a file, not a preset."""

_INCOMPLETE = object()  # holds the place of a stage whose fault is named already


@dataclass(frozen=True)
class Stage:
    """One pruning step, done immediately before a block (paper, section 3).

    Attributes:
        block: Index of the block before which tokens are pruned, from 0.
        lookahead: How many blocks, from `block` on, are looked through to score the
            tokens; of the last one only the class token's attention row is computed.
        keep: A ratio in (0, 1) of the patches that enter block 0, 1.0 to skip the
            stage, or a count of tokens from 2 up.
        until: The block before which the dropped tokens come back, in their places, with what
            they were before the stage: they skip the blocks between, and are not merged. None
            drops or merges them for good.
    """

    block: int
    lookahead: int
    keep: float
    until: int | None = None


REQUIRED = tuple(field.name for field in fields(Stage) if field.default is MISSING)
"""Keys that a stage must have."""


@dataclass(frozen=True)
class ElipConfig:
    """A pruning configuration, checked as a whole when it is made.

    Attributes:
        stages: The pruning steps, in the order of their blocks.
        text_weight: Share t of the text guide in the probing class token
            t * guide + (1 - t) * class token (the paper's lambda is 1 - t); 0 chooses
            by the image alone and then needs no text.
        merge: Whether the dropped tokens are merged into one extra token; not where they come
            back (`until`).
        eval_mode: What evaluation does: `"full"` runs all tokens, `"image"` prunes without
            text, `"text"` prunes by a guide where text is an input at test time.
        reference_depth: The depth for which `stages` are written; they are rescaled to
            the depth of the tower. None: block indices are used unchanged.
        prune_momentum: Whether a momentum encoder (ALBEF, BLIP) is pruned as well; by default
            it sees all tokens, as in the paper's code.
        reducer: Name of what decides; see the list of reducers. Those that read no text, or the
            text alone, take no `text_weight`. A mapping has its options beside its `name`.
        guide_source: `"caption"`, an image's own text; or `"batch"`, the mean of all the batch's
            texts weighted by their similarity to the image, so that no pairing is used.
        warmup: Share of the training, 0 to 1, over which pruning sets in, from all tokens to
            the stages' own counts in five levels.
        final_unpruned: Share of the training, at its end, with all tokens.
        text_anneal: Share of the training over which the text weight falls evenly to 0; by
            default it stays.
        total_steps: Deprecated: optimizer steps of the whole training. The training command
            or `Handle.update_progress` reports them.
        reducer_options: The reducer's options that are not at their defaults, as pairs. A mapping
            of `reducer`, or the options by themselves, give them as well.

    Raises:
        ConfigError: Names every fault at once.

    Example:
        >>> ElipConfig(stages=(Stage(0, 1, 0.5),), reducer="tome", text_weight=0.0).merge
        True
    """

    stages: tuple[Stage, ...]
    text_weight: float = 0.2
    merge: bool = True
    eval_mode: str = "full"
    reference_depth: int | None = None
    prune_momentum: bool = False
    reducer: str = DEFAULT_REDUCER
    guide_source: str = "caption"
    warmup: float = 0.0
    final_unpruned: float = 0.0
    text_anneal: float = 0.0
    total_steps: int | None = None
    reducer_options: tuple[tuple[str, Any], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        """Check all fields together."""
        if self.total_steps is not None:
            _warn_deprecated(
                "total_steps", "is not needed: the training command reports its steps, own loops "
                "by handle.update_progress(step, total_steps)", frames=4
            )  # fmt: skip
        if isinstance(self.stages, list):
            object.__setattr__(self, "stages", tuple(self.stages))
        faults = _faults(self)
        if faults:
            raise ConfigError(join_faults("ELIP config", faults))

    @property
    def method(self) -> Reducer:
        """The reducer, with its options."""
        return make_reducer(self.reducer, self.reducer_options)

    def __getattr__(self, name: str) -> Any:
        """Return an option of a reducer; the default where this configuration has another one."""
        if not name.startswith("_") and name in option_defaults():
            return dict(self.reducer_options).get(name, option_defaults()[name])
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @classmethod
    def preset(cls, name: str) -> ElipConfig:
        """Return a named configuration, which fits towers of any depth.

        Args:
            name: `"paper"` (the paper's stages), `"fast"` (the same cuts, lookahead 1), `"half"`
                (similar tokens merge in every block), `"level"` (about as many do, with an unpruned
                end), `"third"` (more do), `"embed"` (`half` in evaluation too, for weights that are
                there) or `"lowres"` (the picture at half its side, with an unpruned end).

        Returns:
            The configuration.

        Raises:
            ConfigError: If there is no such preset.

        Example:
            >>> ElipConfig.preset("half").reducer
            'tome'
        """
        if not _is_one_of(name, PRESETS):
            raise ConfigError(f"preset {shown(name)} is not known; {nearest(name, PRESETS)}")
        return PRESETS[name]

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any] | str | None) -> ElipConfig:
        """Read a configuration from YAML, JSON, OmegaConf or Python keys.

        Args:
            mapping: The field names of this class, with `stages` as a list of mappings;
                or `preset` in place of `stages`, with other fields to override. A bare
                string is a preset's name, or a file that ends in .json, .yaml or .yml, such as
                `elip plan -o` writes. None or no `stages` means the default preset, "paper".

        Returns:
            The configuration.

        Raises:
            ConfigError: Names every unknown key and every other fault at once.

        Example:
            >>> config = ElipConfig.from_mapping({"preset": "fast", "eval_mode": "image"})
            >>> [stage.keep for stage in config.stages]
            [0.9, 0.65, 0.4]
        """
        if mapping is None:
            mapping = {}
        if isinstance(mapping, str):
            if not mapping.endswith(FILES):
                return cls.preset(mapping)
            mapping = _read_file(mapping)
        if not isinstance(mapping, Mapping):
            raise ConfigError(
                f"an ELIP config is a mapping or a preset's name, got {type(mapping).__name__}"
            )
        values = _renamed({str(key): mapping[key] for key in mapping})
        faults = _unknown_keys(values, ("preset", *_names(cls), *option_defaults()), "")
        if "preset" in values and "stages" in values:
            faults.append("give either 'preset' or 'stages', not both")
        values, defaults = _with_options(values), {}
        if _is_one_of(values.get("reducer"), reducers()):
            defaults = dict(find_reducer(values["reducer"]).config_defaults(values))
        preset = values.get("preset", defaults.pop("preset", DEFAULT_PRESET))
        if not _is_one_of(preset, PRESETS):
            faults.append(f"preset {shown(preset)} is not known; {nearest(preset, PRESETS)}")
            preset = DEFAULT_PRESET
        known = {**defaults, **{key: values[key] for key in _names(cls) if key in values}}
        base = PRESETS[preset]
        if "stages" in known:
            known["stages"] = _stages(known["stages"], faults)
            known.setdefault("reference_depth", None)
        if "reducer" not in known and "reducer_options" in known:
            options = {**dict(base.reducer_options), **dict(known["reducer_options"])}
            known["reducer_options"] = tuple(sorted(options.items()))
        # Without __init__ the fields are not checked yet: all faults go into one error.
        draft = object.__new__(cls)
        for name in _names(cls):
            object.__setattr__(draft, name, known.get(name, getattr(base, name)))
        faults += _faults(draft)
        if faults:
            raise ConfigError(join_faults("ELIP config", faults))
        return replace(draft)

    def to_mapping(self) -> dict[str, Any]:
        """Return plain values which `from_mapping` reads back to an equal config.

        Returns:
            A dict of str, numbers, booleans, None and lists, fit for JSON and YAML.
        """
        mapping: dict[str, Any] = {name: getattr(self, name) for name in _names(type(self))}
        if self.total_steps is None:
            del mapping["total_steps"]
        options = dict(mapping.pop("reducer_options"))
        if options:
            mapping["reducer"] = {"name": self.reducer, **options}
        mapping["stages"] = [
            {name: value for name, value in vars(stage).items() if value is not None}
            for stage in self.stages
        ]
        return mapping


def _read_file(path: str) -> Any:
    """Read the config in a file: its `elip` section, or all of it."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        values = json.loads(text) if path.endswith(".json") else _read_yaml(text)
    except ImportError as error:
        raise ConfigError(f"{path}: to read YAML, run: pip install pyyaml") from error
    except Exception as error:  # of the file system, json and yaml
        raise ConfigError(f"the ELIP config {path!r} cannot be read: {error}") from error
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} holds {type(values).__name__}, but an ELIP config is a mapping")
    return values.get("elip", values)


def _read_yaml(text: str) -> Any:
    """Read YAML; refuse text whose aliases stand for more values than a configuration has."""
    import yaml  # comes with every host

    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if _count_values(node, {}) > MOST_VALUES:
        raise ValueError(f"its aliases stand for more than {MOST_VALUES} values")
    return None if node is None else yaml.SafeLoader("").construct_document(node)


def _count_values(node: Any, counted: dict[int, float]) -> float:
    """Count the values below a node of YAML, those of an alias each time that it stands there."""
    if id(node) not in counted:
        counted[id(node)] = math.inf  # until it is counted: a node that holds itself
        inner = getattr(node, "value", ())
        parts = [] if isinstance(inner, str) else inner
        values = (part for pair in parts for part in (pair if isinstance(pair, tuple) else [pair]))
        counted[id(node)] = 1 + sum(_count_values(value, counted) for value in values)
    return counted[id(node)]


def _accept_old_names(cls: type[ElipConfig]) -> None:
    """Let the constructor take options by themselves, and it and attribute access old names."""
    init = cls.__init__

    @functools.wraps(init)
    def __init__(self: ElipConfig, *args: Any, **fields: Any) -> None:
        init(self, *args, **_with_options(_renamed(fields)))

    cls.__init__ = __init__  # type: ignore[method-assign]
    for old, new in RENAMED.items():
        setattr(cls, old, property(functools.partial(_old_attribute, old, new)))


def _old_attribute(old: str, new: str, config: ElipConfig) -> Any:
    _warn_deprecated(old, f"is now called {new!r}", frames=2)
    return getattr(config, new)


def _renamed(values: dict[str, Any]) -> dict[str, Any]:
    """Give values their new names; a new name that is given beside its old one wins."""
    for old in [key for key in values if key in RENAMED]:
        _warn_deprecated(old, f"is now called {RENAMED[old]!r}", frames=3)
        values.setdefault(RENAMED[old], values.pop(old))
        values.pop(old, None)
    return values


def _with_options(values: dict[str, Any]) -> dict[str, Any]:
    """Take a reducer's options out of its mapping, and those that are given by themselves."""
    defaults, given = option_defaults(), values.get("reducer_options", ())
    try:
        options = {str(key): value for key, value in dict(given).items()}
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"ELIP config: reducer_options must be pairs of a name and a value, got {shown(given)}"
        ) from error
    options |= {key: values.pop(key) for key in defaults if key in values}
    if isinstance(values.get("reducer"), Mapping):
        given = {str(key): value for key, value in values["reducer"].items()}
        values["reducer"] = given.pop("name", None)
        options |= given
    # Those at their defaults say nothing, whatever the reducer: older files have them all.
    changed = {k: v for k, v in options.items() if k not in defaults or not _same(v, defaults[k])}
    if options or "reducer_options" in values:
        values["reducer_options"] = tuple(sorted(changed.items(), key=lambda item: item[0]))
    return values


def _same(value: Any, default: Any) -> bool:
    plain = isinstance(value, (int, float, str))  # an array has no truth value
    return plain and value == default and isinstance(value, bool) == isinstance(default, bool)


def _warn_deprecated(key: str, what: str, *, frames: int) -> None:
    """Warn whoever is so many frames above this one."""
    message = f"ELIP config: key {key!r} {what}"
    warnings.warn(message, ElipDeprecationWarning, stacklevel=frames + 1)


def _names(cls: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(cls))


def _unknown_keys(values: Mapping[str, Any], known: Sequence[str], where: str) -> list[str]:
    unknown = [key for key in values if key not in known]
    all_keys = f"keys are {list(known)}"
    return [f"{where}key {shown(k)} is not known; {nearest(k, known, all_keys)}" for k in unknown]


def _stages(given: Any, faults: list[str]) -> Any:
    if not isinstance(given, Sequence) or isinstance(given, str):
        return given
    stages = []
    for i, item in enumerate(given):
        if not isinstance(item, Mapping):
            stages.append(item)
            continue
        values = {str(key): item[key] for key in item}
        faults += _unknown_keys(values, _names(Stage), f"stage {i}: ")
        missing = [name for name in REQUIRED if name not in values]
        if missing:
            faults.append(f"stage {i}: {missing} missing; a stage has {list(REQUIRED)}")
            stages.append(_INCOMPLETE)
        else:
            known = {name: values[name] for name in _names(Stage) if name in values}
            stages.append(Stage(**known))
    return tuple(stages)


def _is_one_of(value: Any, known: Iterable[str]) -> bool:
    return isinstance(value, str) and value in list(known)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _faults(config: ElipConfig) -> list[str]:
    faults, stage_faults = [], []
    if not isinstance(config.stages, tuple):
        stage_faults.append(f"stages must be a list of stages, got {shown(config.stages)}")
        faults += stage_faults
    else:
        for i, stage in enumerate(config.stages):
            stage_faults += [f"stage {i}: {fault}" for fault in _stage_faults(stage)]
        faults += stage_faults
        if any(stage is _INCOMPLETE for stage in config.stages):
            stage_faults.append("named already")
        blocks = [s.block for s in config.stages if isinstance(s, Stage) and _is_int(s.block)]
        if any(later <= earlier for earlier, later in pairwise(blocks)):
            faults.append(f"blocks of the stages must increase, got {shown(blocks)}")
        faults += _return_faults(config.stages)
    weight = config.text_weight
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= 1:
        faults.append(f"text_weight must be a number from 0 to 1, got {shown(weight)}")
    for name in ("merge", "prune_momentum"):
        if not isinstance(getattr(config, name), bool):
            faults.append(f"{name} must be true or false, got {shown(getattr(config, name))}")
    allowed = (("guide_source", GUIDE_SOURCES), ("eval_mode", EVAL_MODES), ("reducer", reducers()))
    for name, known in allowed:
        if not _is_one_of(getattr(config, name), known):
            given = shown(getattr(config, name))
            faults.append(f"{name} must be one of {list(known)}, got {given}")
    if _is_one_of(config.reducer, reducers()):
        faults += _option_faults(config.reducer, dict(config.reducer_options))
    faults += _schedule_faults(config)
    for name in ("reference_depth", "total_steps"):
        value = getattr(config, name)
        if value is not None and (not _is_int(value) or value < 1):
            faults.append(f"{name} must be null or an integer from 1 up, got {shown(value)}")
    if not (faults or stage_faults):  # a reducer may rely on the fields by themselves
        faults += find_reducer(config.reducer).config_faults(config)
    return faults


def _return_faults(stages: tuple[Any, ...]) -> list[str]:
    faults = []
    for i, (earlier, later) in enumerate(pairwise(stages)):
        if not (isinstance(earlier, Stage) and isinstance(later, Stage) and _is_int(later.block)):
            continue
        back: Any = earlier.until
        if _is_int(back) and later.block < back:
            faults.append(
                f"stage {i + 1}: must not come before block {back}, where the tokens of stage {i} "
                f"come back, got block {later.block}"
            )
    return faults


def _schedule_faults(config: ElipConfig) -> list[str]:
    faults = []
    shares = {name: getattr(config, name) for name in SCHEDULES}
    for name, share in shares.items():
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            faults.append(f"{name} must be a share of the training from 0 to 1, got {shown(share)}")
    if not faults and config.warmup + config.final_unpruned > 1:
        faults.append(
            f"warmup and final_unpruned must not exceed 1 together, got {config.warmup} and "
            f"{config.final_unpruned}"
        )
    return faults


def _option_faults(reducer: str, options: Mapping[str, Any]) -> list[str]:
    known, faults = option_defaults(reducer), []
    for key in options:
        if key in known:
            continue
        others = [name for name in reducers() if key in option_defaults(name)]
        hint = nearest(key, known, f"it has {list(known)}")
        if others:
            hint = f"reducers {others} have it"
        faults.append(f"reducer {reducer!r} has no option {shown(key)}: leave it out; {hint}")
    return faults or option_faults(replace(find_reducer(reducer), **options))


def _stage_faults(stage: Any) -> list[str]:
    if stage is _INCOMPLETE:
        return []
    if not isinstance(stage, Stage):
        return [f"must be a Stage (block, lookahead, keep), got {shown(stage)}"]
    faults = []
    if not _is_int(stage.block) or stage.block < 0:
        faults.append(f"block must be an integer from 0 up, got {shown(stage.block)}")
    if not _is_int(stage.lookahead) or stage.lookahead < 1:
        faults.append(f"lookahead must be an integer from 1 up, got {shown(stage.lookahead)}")
    keep = stage.keep
    if _is_int(keep) and keep == 1:
        faults.append("keep 1 is ambiguous: write 1.0 to keep all tokens, or a count from 2 up")
    elif _is_int(keep) and keep < 2:
        faults.append(f"keep as a count must be 2 or more, got {shown(keep)}")
    elif not _is_int(keep) and not (isinstance(keep, float) and 0 < keep <= 1):
        faults.append(f"keep must be a ratio in (0, 1] or a count from 2 up, got {shown(keep)}")
    until = stage.until
    if until is not None and not (_is_int(until) and _is_int(stage.block) and until > stage.block):
        faults.append(
            f"until must be null or a block after {shown(stage.block)}, got {shown(until)}"
        )
    return faults


_accept_old_names(ElipConfig)


def _presets() -> dict[str, ElipConfig]:
    made = {}
    for reducer in reducers().values():
        for name, mapping in vars(type(reducer)).get("presets", {}).items():
            values = {**reducer.config_defaults(mapping), **mapping, "reducer": reducer.name}
            values["stages"] = tuple(Stage(**stage) for stage in values["stages"])
            made[name] = ElipConfig(**{k: v for k, v in values.items() if k != "preset"})
    return made


PRESETS = _presets()
"""Configurations by name, which their reducers keep."""

TRAINING_PRESETS = [
    name
    for i, (name, config) in enumerate(PRESETS.items())
    if replace(config, eval_mode="full") not in list(PRESETS.values())[:i]
]
"""Names of the presets, without those that differ from an earlier one in evaluation alone."""

RECOMMENDED = "half"
"""The preset for contrastive training: it loses less than a point at equal steps, and gains at
equal operations (docs/quality.md)."""

OUTSCORED = ("paper", "fast")
"""Presets that cost more than the recommended one and did not score higher (docs/quality.md)."""
