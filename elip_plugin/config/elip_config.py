"""The configuration and its presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from elip_plugin.config.checks import find_faults
from elip_plugin.config.file import FILES, read_file
from elip_plugin.config.mapping import (
    names,
    read_reducer,
    read_stages,
    unknown_keys,
    write_reducer,
)
from elip_plugin.config.stage import INCOMPLETE, Stage
from elip_plugin.errors import ConfigError, join_faults, nearest, shown
from elip_plugin.reducers import Reducer, find_reducer, reducers

RECOMMENDED = "half"
"""The preset where nothing is said: it loses less than a point at equal steps, and gains at equal
operations (docs/plans.md)."""

PAPER = "paper"
"""The preset of the paper's method, by which models of its name (elip-X, elip_X) are pruned."""


SAYS_PLAN = frozenset({"preset", "stages", "reducer"})
"""Keys of a mapping of which any one says a plan; others change one that is said elsewhere."""


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
        reducer: What decides, with its options, such as `find_reducer("tome")`; in a mapping its
            name, or a mapping with its options beside its `name`. Those that read no text, or the
            text alone, take no `text_weight`.
        guide_source: `"caption"`, an image's own text; or `"batch"`, the mean of all the batch's
            texts weighted by their similarity to the image, so that no pairing is used.
        warmup: Share of the training, 0 to 1, over which pruning sets in, from all tokens to
            the stages' own counts in five levels.
        final_unpruned: Share of the training, at its end, with all tokens.
        text_anneal: Share of the training over which the text weight falls evenly to 0; by
            default it stays.
        restore: Whether after the last block each patch has the token that it was merged into, so
            that whoever reads the tokens counts a token as often as it stands for a patch. By
            default it has where the reducer merges, unless the class token alone is read, or a
            text side by cross-attention.

    Raises:
        ConfigError: Names every fault at once.

    Example:
        >>> from elip_plugin.reducers import find_reducer
        >>> tome = find_reducer("tome")
        >>> ElipConfig(stages=(Stage(0, 1, 0.5),), reducer=tome, text_weight=0.0).merge
        True
    """

    stages: tuple[Stage, ...]
    text_weight: float = 0.2
    merge: bool = True
    eval_mode: str = "full"
    reference_depth: int | None = None
    prune_momentum: bool = False
    reducer: Reducer = field(default_factory=lambda: find_reducer("elip"))
    guide_source: str = "caption"
    warmup: float = 0.0
    final_unpruned: float = 0.0
    text_anneal: float = 0.0
    restore: bool | None = None

    def __post_init__(self) -> None:
        """Check all fields together."""
        if isinstance(self.stages, list):
            object.__setattr__(self, "stages", tuple(self.stages))
        faults = find_faults(self)
        if faults:
            raise ConfigError(join_faults("ELIP config", faults))

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
            >>> ElipConfig.preset("half").reducer.name
            'tome'
        """
        if not _is_preset(name):
            raise ConfigError(f"preset {shown(name)} is not known; {nearest(name, PRESETS)}")
        return PRESETS[name]

    @classmethod
    def from_mapping(
        cls,
        mapping: Mapping[str, Any] | str | None,
        *,
        default: Mapping[str, Any] | str | None = None,
    ) -> ElipConfig:
        """Read a configuration from YAML, JSON, OmegaConf or Python keys.

        Args:
            mapping: The field names of this class, with `stages` as a list of mappings;
                or `preset` in place of `stages`, with other fields to override. A bare
                string is a preset's name, or a file that ends in .json, .yaml or .yml, such as
                `elip plan -o` writes. A `reducer` by itself has stages of its own, "tome" those of
                "half"; without any of the three, what is given changes the default plan.
            default: That plan, a preset's name or a mapping; None for "half".

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
        values = {str(key): mapping[key] for key in mapping}
        if not values.keys() & SAYS_PLAN:
            default = RECOMMENDED if default is None else default
            values = {**({"preset": default} if isinstance(default, str) else default), **values}
        faults = unknown_keys(values, ("preset", *names(cls)))
        if "preset" in values and "stages" in values:
            faults.append("give either 'preset' or 'stages', not both")
        preset = values.get("preset")
        if "preset" in values and not _is_preset(preset):
            faults.append(f"preset {shown(preset)} is not known; {nearest(preset, PRESETS)}")
            preset = RECOMMENDED
        known = {key: values[key] for key in names(cls) if key in values}
        if "reducer" in known:
            base = None if preset is None else PRESETS[preset].reducer
            reducer = known["reducer"] = read_reducer(known["reducer"], base, faults)
            if reducer is not INCOMPLETE:
                known.setdefault("text_weight", reducer.text_weight)
                if preset is None and "stages" not in known:
                    preset = reducer.plan.get("preset")
                    known |= {key: reducer.plan[key] for key in reducer.plan if key != "preset"}
        plan = PRESETS[preset or PAPER]  # whose other keys are the defaults of the fields
        if "stages" in known:
            known["stages"] = read_stages(known["stages"], faults)
            known.setdefault("reference_depth", None)
        # Without __init__ the fields are not checked yet: all faults go into one error.
        draft = object.__new__(cls)
        for name in names(cls):
            object.__setattr__(draft, name, known.get(name, getattr(plan, name)))
        faults += find_faults(draft)
        if faults:
            raise ConfigError(join_faults("ELIP config", faults))
        return replace(draft)

    def to_mapping(self) -> dict[str, Any]:
        """Return plain values which `from_mapping` reads back to an equal config.

        Returns:
            A dict of str, numbers, booleans, None and lists, fit for JSON and YAML.
        """
        mapping: dict[str, Any] = {name: getattr(self, name) for name in names(self)}
        mapping["reducer"] = write_reducer(self.reducer)
        mapping["stages"] = [
            {name: value for name, value in vars(stage).items() if value is not None}
            for stage in self.stages
        ]
        return mapping


def _is_preset(name: Any) -> bool:
    return isinstance(name, str) and name in PRESETS


def _presets() -> dict[str, ElipConfig]:
    made = {}
    for reducer in reducers().values():
        for name, mapping in vars(type(reducer)).get("presets", {}).items():
            values = {"text_weight": reducer.text_weight, **mapping, "reducer": reducer}
            values["stages"] = tuple(Stage(**stage) for stage in values["stages"])
            made[name] = ElipConfig(**values)
    return made


PRESETS = _presets()
"""Configurations by name, which their reducers keep."""
