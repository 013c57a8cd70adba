"""The configuration and its presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from elip_plugin.config.checks import find_faults, is_one_of
from elip_plugin.config.file import FILES, read_file
from elip_plugin.config.mapping import names, read_stages, unknown_keys, with_options
from elip_plugin.config.old_names import accept_old_names, rename, warn_deprecated
from elip_plugin.config.stage import Stage
from elip_plugin.errors import ConfigError, join_faults, nearest, shown
from elip_plugin.reducers import (
    DEFAULT_REDUCER,
    Reducer,
    find_reducer,
    make_reducer,
    option_defaults,
    reducers,
)

DEFAULT_PRESET = "paper"


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
            warn_deprecated(
                "total_steps", "is not needed: the training command reports its steps, own loops "
                "by handle.update_progress(step, total_steps)", frames=4
            )  # fmt: skip
        if isinstance(self.stages, list):
            object.__setattr__(self, "stages", tuple(self.stages))
        faults = find_faults(self)
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
        if not is_one_of(name, PRESETS):
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
            mapping = read_file(mapping)
        if not isinstance(mapping, Mapping):
            raise ConfigError(
                f"an ELIP config is a mapping or a preset's name, got {type(mapping).__name__}"
            )
        values = rename({str(key): mapping[key] for key in mapping})
        faults = unknown_keys(values, ("preset", *names(cls), *option_defaults()), "")
        if "preset" in values and "stages" in values:
            faults.append("give either 'preset' or 'stages', not both")
        values, defaults = with_options(values), {}
        if is_one_of(values.get("reducer"), reducers()):
            defaults = dict(find_reducer(values["reducer"]).config_defaults(values))
        preset = values.get("preset", defaults.pop("preset", DEFAULT_PRESET))
        if not is_one_of(preset, PRESETS):
            faults.append(f"preset {shown(preset)} is not known; {nearest(preset, PRESETS)}")
            preset = DEFAULT_PRESET
        known = {**defaults, **{key: values[key] for key in names(cls) if key in values}}
        base = PRESETS[preset]
        if "stages" in known:
            known["stages"] = read_stages(known["stages"], faults)
            known.setdefault("reference_depth", None)
        if "reducer" not in known and "reducer_options" in known:
            options = {**dict(base.reducer_options), **dict(known["reducer_options"])}
            known["reducer_options"] = tuple(sorted(options.items()))
        # Without __init__ the fields are not checked yet: all faults go into one error.
        draft = object.__new__(cls)
        for name in names(cls):
            object.__setattr__(draft, name, known.get(name, getattr(base, name)))
        faults += find_faults(draft)
        if faults:
            raise ConfigError(join_faults("ELIP config", faults))
        return replace(draft)

    def to_mapping(self) -> dict[str, Any]:
        """Return plain values which `from_mapping` reads back to an equal config.

        Returns:
            A dict of str, numbers, booleans, None and lists, fit for JSON and YAML.
        """
        mapping: dict[str, Any] = {name: getattr(self, name) for name in names(type(self))}
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


accept_old_names(ElipConfig)


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
