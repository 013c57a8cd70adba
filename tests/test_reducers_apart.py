"""Nothing outside `reducers/` knows one reducer from another."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import elip_plugin
from elip_plugin.reducers import Reducer, reducers

PACKAGE = Path(elip_plugin.__file__).parent
OTHER_MEANINGS = {
    "random": "initial weights that are drawn",
    "elip": "the key of a config, and the attribute of a patched module",
}
"""Names of reducers that are words of something else, too."""

ASKED = {
    "needs": "parts of a tower, which installing sees to whatever asks for them",
    "text_alone": "a host has another guide then, and evaluation without a text none",
    "draws": "an exported graph would keep one draw",
    "merges": "whether each patch has a token that can be given back to it",
    "uses_attention": "what a plan prints of the costs",
    "inside_blocks": "what a plan counts of the block before a stage",
}
"""What a reducer says of itself to others, and why they ask."""

FLAGS = {name for name, value in vars(Reducer).items() if isinstance(value, (bool, tuple))} - {
    *ASKED,
    "__dataclass_params__",
    "__match_args__",
}


def mentions(path: Path) -> Iterator[str]:
    names = reducers().keys() - OTHER_MEANINGS.keys()
    options = {option.name for reducer in reducers().values() for option in fields(reducer)}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.value in names | options:
                yield f"{path.relative_to(PACKAGE)}:{node.lineno} {node.value!r}"
        elif isinstance(node, ast.Attribute) and node.attr in FLAGS | options:
            yield f"{path.relative_to(PACKAGE)}:{node.lineno} .{node.attr}"


def test_no_name_flag_or_option_of_a_reducer_outside_their_folder() -> None:
    outside = [path for path in PACKAGE.rglob("*.py") if PACKAGE / "reducers" not in path.parents]
    assert len(outside) > 50 and {"reads_text", "looks_ahead", "returns"} <= FLAGS
    assert [line for path in outside for line in mentions(path)] == []


def test_it_would_be_found() -> None:
    inside = [line for path in (PACKAGE / "reducers").glob("*.py") for line in mentions(path)]
    assert any("'tome'" in line for line in inside)
    assert any(".looks_ahead" in line for line in inside)
    assert any(".choice_loss" in line for line in inside)
