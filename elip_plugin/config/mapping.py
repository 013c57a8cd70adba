"""Keys of a configuration that is given as a mapping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from elip_plugin.config.stage import INCOMPLETE, REQUIRED, Stage
from elip_plugin.errors import ConfigError, nearest, shown
from elip_plugin.reducers import Reducer, find_reducer, reducers


def names(cls: Any) -> tuple[str, ...]:
    """Return the names of the fields of a dataclass."""
    return tuple(field.name for field in fields(cls))


def unknown_keys(values: Mapping[str, Any], known: Sequence[str], where: str = "") -> list[str]:
    """Return a fault for each key that is not known, with where it belongs or the nearest known.

    Args:
        values: The given values by key.
        known: The keys that there are.
        where: What each fault begins with.

    Returns:
        The faults.
    """
    return [
        f"{where}key {shown(key)} is not known; {_place_of(key, known)}"
        for key in values
        if key not in known
    ]


def _place_of(key: str, known: Sequence[str]) -> str:
    if key in names(Stage):
        return f"it belongs into each of the stages: [{{block: ..., {key}: ...}}, ...]"
    owners = [name for name, reducer in reducers().items() if key in names(reducer)]
    if owners:
        return f"it is an option of a reducer: reducer: {{name: {owners[0]}, {key}: ...}}"
    return nearest(key, known, f"keys are {list(known)}")


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


def read_reducer(given: Any, base: Reducer | None, faults: list[str]) -> Any:
    """Read a reducer that is given by its name, or by a mapping with its name and options.

    Args:
        given: A name, a mapping, a reducer or anything else.
        base: The reducer of the preset that is named beside it, whose options hold where it has
            the same name; None for no preset.
        faults: What is wrong with it is added here.

    Returns:
        The reducer; `INCOMPLETE` if there is none of that name.
    """
    if isinstance(given, Reducer):
        return given
    options = dict(given) if isinstance(given, Mapping) else {"name": given}
    try:
        reducer = find_reducer(options.pop("name", None))
    except ConfigError as error:
        faults.append(str(error))
        return INCOMPLETE
    if base is not None and base.name == reducer.name:
        reducer = base
    known = names(reducer)
    for key in [key for key in options if key not in known]:
        del options[key]
        others = [name for name, other in reducers().items() if key in names(other)]
        has = f"it has {list(known)}" if known else "it has none"
        hint = f"reducers {others} have it" if others else nearest(key, known, has)
        faults.append(f"reducer {reducer.name!r} has no option {shown(key)}: leave it out; {hint}")
    return replace(reducer, **{str(key): value for key, value in options.items()})


def write_reducer(reducer: Reducer) -> Any:
    """Return what `read_reducer` reads back: the name, or a mapping with the changed options."""
    changed = {
        field.name: getattr(reducer, field.name)
        for field in fields(reducer)
        if getattr(reducer, field.name) != field.default
    }
    return {"name": reducer.name, **changed} if changed else reducer.name
