"""What is public stays as `public.txt` lists it: names, signatures, presets, keys, commands.

`python tests/test_public.py --write` writes the list anew, so that a change of it shows in a diff.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

import elip_plugin
from elip_plugin import errors
from elip_plugin.config import PRESETS, ElipConfig
from elip_plugin.config.stage import Stage
from elip_plugin.hosts.base import Host
from elip_plugin.patching.description import Description, Tower
from elip_plugin.reducers import Reducer, reducers

pytestmark = pytest.mark.filterwarnings("error::DeprecationWarning")
LIST = Path(__file__).parent / "public.txt"


def signature(of: Any) -> str:
    """Names and defaults, without types."""
    found = inspect.signature(of)
    plain = [each.replace(annotation=inspect.Parameter.empty) for each in found.parameters.values()]
    made = str(found.replace(parameters=plain, return_annotation=inspect.Signature.empty))
    return re.sub(r"<function (\S+) at \w+>", r"\1", made)


def members(cls: type[Any]) -> Iterator[str]:
    """What a class has of its own."""
    for name, value in sorted(vars(cls).items()):
        if name.startswith("_") or name in getattr(cls, "__dataclass_fields__", ()):
            continue
        value = getattr(value, "__func__", value)
        yield name + (signature(value) if inspect.isfunction(value) else "")


def names(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        is_error = isinstance(value, type) and issubclass(value, Exception)
        yield value.__name__ + ("" if is_error else signature(value))
        if isinstance(value, type):
            yield from (f"  .{member}" for member in members(value))


def errors_raised() -> Iterator[str]:
    for name, cls in sorted(vars(errors).items()):
        if isinstance(cls, type) and issubclass(cls, errors.ElipError):
            yield f"{name}({cls.__base__.__name__})"


def plans() -> Iterator[str]:
    for name, config in PRESETS.items():
        yield f"{name}: {json.dumps(config.to_mapping())}"


def keys() -> Iterator[str]:
    yield "config: preset, " + ", ".join(field.name for field in fields(ElipConfig))
    yield "stage: " + ", ".join(field.name for field in fields(Stage))
    for name, reducer in reducers().items():
        options = (f"{field.name}={field.default}" for field in fields(reducer))
        yield f"reducer {name}: " + ", ".join(options)


def commands(command: Any, words: str) -> Iterator[str]:
    if hasattr(command, "commands"):
        for name, other in command.commands.items():
            yield from commands(other, f"{words} {name}")
        return
    options = ["/".join([*each.opts, *each.secondary_opts]) for each in command.params]
    yield " ".join([words, *options])


def listing() -> str:
    from typer.main import get_command

    from elip_plugin.cli.main import app

    parts = {
        "elip_plugin": names(getattr(elip_plugin, name) for name in elip_plugin.__all__),
        "For hosts and reducers": names([Description, Host, Reducer, Tower]),
        "elip_plugin.errors": errors_raised(),
        "Presets": plans(),
        "Keys": keys(),
        "Commands": commands(get_command(app), "elip"),
    }
    return "\n\n".join(f"{title}\n\n" + "\n".join(lines) for title, lines in parts.items()) + "\n"


def test_the_list_is_current() -> None:
    assert LIST.read_text() == listing()


@pytest.mark.parametrize("plan", [None, *PRESETS])
def test_a_pruned_model_has_the_state_of_its_base(plan: str | None) -> None:
    open_clip = pytest.importorskip("open_clip")
    model = open_clip.create_model("ViT-tiny")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    elip_plugin.apply(model, plan)
    after = model.state_dict()
    assert [*after] == [*before]
    assert all(torch.equal(after[key], before[key]) for key in before)


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        LIST.write_text(listing())
