"""Keys of a configuration that is given as a mapping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from elip_plugin.config.stage import INCOMPLETE, REQUIRED, Stage
from elip_plugin.errors import ConfigError, nearest, shown
from elip_plugin.reducers import option_defaults


def names(cls: type) -> tuple[str, ...]:
    """Return the names of the fields of a dataclass."""
    return tuple(field.name for field in fields(cls))


def unknown_keys(values: Mapping[str, Any], known: Sequence[str], where: str) -> list[str]:
    """Return a fault for each key that is not known, with the nearest that is.

    Args:
        values: The given values by key.
        known: The keys that there are.
        where: What each fault begins with.

    Returns:
        The faults.
    """
    unknown = [key for key in values if key not in known]
    all_keys = f"keys are {list(known)}"
    return [f"{where}key {shown(k)} is not known; {nearest(k, known, all_keys)}" for k in unknown]


def read_stages(given: Any, faults: list[str]) -> Any:
    """Read stages that are given as mappings; what is none is left for the check.

    Args:
        given: A list of mappings or stages, or anything else.
        faults: What is wrong with the keys of a stage is added here.

    Returns:
        A tuple of stages, or what was given.
    """
    if not isinstance(given, Sequence) or isinstance(given, str):
        return given
    stages = []
    for i, item in enumerate(given):
        if not isinstance(item, Mapping):
            stages.append(item)
            continue
        values = {str(key): item[key] for key in item}
        faults += unknown_keys(values, names(Stage), f"stage {i}: ")
        missing = [name for name in REQUIRED if name not in values]
        if missing:
            faults.append(f"stage {i}: {missing} missing; a stage has {list(REQUIRED)}")
            stages.append(INCOMPLETE)
        else:
            known = {name: values[name] for name in names(Stage) if name in values}
            stages.append(Stage(**known))
    return tuple(stages)


def with_options(values: dict[str, Any]) -> dict[str, Any]:
    """Take a reducer's options out of its mapping, and those that are given by themselves.

    Args:
        values: Values of a configuration by key, which are changed.

    Returns:
        The same, with all options in `reducer_options`.

    Raises:
        ConfigError: If `reducer_options` holds no pairs.
    """
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
