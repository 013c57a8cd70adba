"""Hostile configurations and plans: an ElipError, or a configuration that is read back as it is."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults.outcomes import contained, outcome
from hypothesis import example, given
from hypothesis import strategies as st

from benchmarks.faults.counting import tried
from elip_plugin import ElipConfig, Stage, plan
from elip_plugin.config import PRESETS
from elip_plugin.planning import Plan
from elip_plugin.reducers import find_reducer, reducers

HUGE = 10**400
FIELDS = {field.name for field in fields(ElipConfig)} - {"stages"}
OPTIONS = sorted({option.name for each in reducers().values() for option in fields(each)})

numbers = st.one_of(
    st.integers(-3, 40),
    st.floats(-0.5, 1.5),
    st.sampled_from([0.0, 0.5, 1.0, 1, 2, HUGE, -HUGE, 10**18, float("nan"), float("inf"), -0.0]),
    st.sampled_from([np.float64(0.5), np.int64(3), np.float32(0.5), torch.tensor(0.5)]),
)
scalars = st.one_of(
    st.none(), st.booleans(), numbers, st.text(max_size=8), st.binary(max_size=4), st.just(object())
)
arrays = st.sampled_from([np.zeros(3), np.eye(2), torch.zeros(3), torch.ones(2, 2), {1, 2}])
hashable = st.one_of(st.text(max_size=5), st.integers(), st.none(), st.tuples(st.integers()))
anything: Any = st.recursive(
    scalars | arrays,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(hashable, inner, max_size=4),
    max_leaves=8,
)

KEYS = ("block", "lookahead", "keep", "until")
block = st.integers(0, 13)
good_stage = st.fixed_dictionaries(
    {
        "block": block,
        "lookahead": st.integers(1, 3),
        "keep": st.floats(0.01, 0.99) | st.integers(2, 60) | st.just(1.0),
    },
    optional={"until": st.none() | block},
)
bad_stage = st.dictionaries(st.sampled_from(KEYS) | hashable, anything, max_size=5) | anything
stages = st.lists(good_stage | bad_stage, max_size=4) | anything
names = st.sampled_from([*reducers(), "", "tom", "ELIP"])
reducer = names | anything
options = st.dictionaries(st.sampled_from([*OPTIONS, "name"]) | hashable, anything)
VALUES: dict[str, Any] = {
    "preset": st.sampled_from([*PRESETS, "fsat", ""]) | anything,
    "stages": stages,
    "text_weight": numbers,
    "merge": st.booleans() | anything,
    "eval_mode": st.sampled_from(["full", "image", "text"]) | anything,
    "reference_depth": st.none() | numbers | anything,
    "prune_momentum": st.booleans() | anything,
    "reducer": reducer | st.builds(lambda name, more: {**more, "name": name}, reducer, options),
    "guide_source": st.sampled_from(["caption", "batch"]) | anything,
    "warmup": numbers,
    "final_unpruned": numbers,
    "text_anneal": numbers | anything,
    **{name: anything for name in ("total_steps", *OPTIONS)},
}
mappings = st.fixed_dictionaries({}, optional=VALUES)
more = st.dictionaries(hashable, anything, max_size=1)
configs = st.builds(lambda given, rest: {**rest, **given}, mappings, more)

stage_of = st.builds(
    Stage,
    block,
    st.integers(1, 13),
    st.floats(0.001, 1.0) | st.integers(2, 5000),
    st.none() | block,
)
valid = st.builds(
    lambda made, merge, depth, name: outcome(
        lambda: ElipConfig(
            tuple(sorted(made, key=lambda s: s.block)), 0.0, merge, reference_depth=depth,
            reducer=find_reducer(name),
        )
    ),
    st.lists(stage_of, max_size=4),
    st.booleans(),
    st.none() | st.integers(1, 50) | st.just(HUGE),
    st.sampled_from(list(reducers())),
)  # fmt: skip
sizes = st.integers(-2, 40) | st.sampled_from([0, 1, 4000, 10**6])


def assert_reads_back(config: ElipConfig) -> None:
    """Its values are plain, and make an equal configuration."""
    written = json.dumps(config.to_mapping())
    assert ElipConfig.from_mapping(json.loads(written)) == config
    hash(config)


def assert_plan(made: Plan, num_patches: int, depth: int, prefix: int) -> None:
    """Tokens never grow, but for those that come back, and some are left."""
    assert len(made.tokens) == depth and made.by_block.keys() == {s.block for s in made.stages}
    assert all(prefix < tokens <= prefix + num_patches for tokens in made.tokens)
    assert 0 <= made.removed < 1
    assert all(s.tokens_in > s.tokens_out > prefix and 0 <= s.block < depth for s in made.stages)
    if all(stage.until is None for stage in made.stages):
        assert list(made.tokens) == sorted(made.tokens, reverse=True)
    assert made.forward_cost(64) > 0
    assert str(made.tokens[0]) in made.summary()


@given(configs | anything)
@example({"preset": np.zeros(3)})
@example({"reducer": torch.zeros(2)})
@example({"eval_mode": np.eye(2), "reducer": {"name": "similarity", "choice_loss": np.zeros(3)}})
@example({"reducer": {"name": "similarity", 1: 2, "choice_loss": 3}})
@example({"stages": [{"block": HUGE, "lookahead": 1, "keep": 0.5}], "reference_depth": 12})
@example({"x" * 10_000: 1, "preset": "y" * 10_000})
def test_mappings(given: Any) -> None:
    config = outcome(lambda: ElipConfig.from_mapping(given))
    tried("configurations")
    if config is not None:
        assert_reads_back(config)


@given(st.dictionaries(st.sampled_from([*VALUES]), anything, max_size=4), stages)
@example({"reducer": "tome"}, [])
@example({"text_weight": np.zeros(3)}, [])
@example({"text_weight": torch.zeros(3), "merge": np.eye(2)}, [])
@example({"reducer": torch.zeros(3)}, [])
@example({"reducer": [("a", 1, 2)]}, [])
def test_fields(given: dict[str, Any], stages: Any) -> None:
    def as_stage(item: Any) -> Any:
        whole = isinstance(item, dict) and {*KEYS[:3]} <= {*item} <= {*KEYS}
        return Stage(**item) if whole else item

    def make() -> ElipConfig:
        made = [as_stage(item) for item in stages] if isinstance(stages, list) else stages
        rest = {key: value for key, value in given.items() if key in FIELDS}
        return ElipConfig(**{"stages": made, **rest})

    config = outcome(make)
    tried("configurations")
    if config is not None:
        assert_reads_back(config)


@given(valid, sizes, sizes, st.integers(0, 5), st.booleans())
@example(ElipConfig((Stage(10**18, 1, 0.5),), reference_depth=12), 196, 12, 1, False)
@example(ElipConfig((Stage(2, 1, 0.5),), reference_depth=HUGE), 196, 12, 1, False)
@example(ElipConfig((Stage(HUGE, HUGE, HUGE),), reference_depth=12), 196, 12, 1, True)
@example(ElipConfig(()), 0, 0, 0, False)
@example(ElipConfig(()), -1, 3, 1, True)
def test_plans(
    config: ElipConfig | None, num_patches: int, depth: int, prefix: int, skip: bool
) -> None:
    if config is None:
        return
    depth = min(depth, 64)
    made = outcome(
        lambda: plan(config, num_patches=num_patches, depth=depth, prefix=prefix, skip_idle=skip)
    )
    tried("plans")
    if made is not None:
        assert_plan(made, num_patches, depth, prefix)


SPELLINGS = (".json", ".yaml", ".yml")


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode), st.sampled_from(SPELLINGS))
def test_files_of_noise(tmp_path_factory: pytest.TempPathFactory, raw: bytes, end: str) -> None:
    path = tmp_path_factory.getbasetemp() / f"noise{end}"
    path.write_bytes(raw)
    outcome(lambda: ElipConfig.from_mapping(str(path)))
    tried("configuration files")


@given(configs, st.data())
def test_files_that_were_cut_or_changed(
    tmp_path_factory: pytest.TempPathFactory, given: Any, data: st.DataObject
) -> None:
    raw = bytearray(json.dumps(given, default=repr, skipkeys=True).encode())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at:] = raw[at + 1 :] if data.draw(st.booleans()) else data.draw(st.binary(max_size=3))
    path = tmp_path_factory.getbasetemp() / f"cut{data.draw(st.sampled_from(SPELLINGS))}"
    path.write_bytes(raw)
    outcome(lambda: ElipConfig.from_mapping(str(path)))
    tried("configuration files")


def laughs(levels: int, width: int, inner: str, level: str) -> str:
    """YAML whose aliases stand for width ** levels values."""
    lines = [f"a0: &a0 {inner}"]
    for i in range(1, levels):
        lines.append(f"a{i}: &a{i} " + level.format(", ".join([f"*a{i - 1}"] * width)))
    return "\n".join(lines) + "\n"


BOMBS = {
    "aliases in lists": laughs(12, 9, "[x, x]", "[{}]") + "stages: *a11\n",
    "aliases as an option": laughs(12, 9, "[x, x]", "[{}]")
    + "reducer: {name: similarity, choice_loss: *a11}\n",
    "aliases as a preset": laughs(12, 9, "[x, x]", "[{}]") + "preset: *a11\n",
    "aliases in mappings": laughs(12, 9, "{k: v}", "{{p: [{}]}}") + "text_weight: *a11\n",
    "merged keys": laughs(12, 9, "{k: v}", "{{<<: [{}]}}"),
    "a list in itself": "stages: &a [*a]\n",
    "a mapping in itself": "reducer: &a {name: *a}\n",
    "deep lists": "stages: " + "[" * 10_000,
    "a long key": "k" * 1_000_000 + ": 1\n",
    "a long name": "preset: " + "x" * 1_000_000 + "\n",
    "a long number": "text_weight: " + "9" * 1_000_000 + "\n",
    "many stages": "stages: [" + "1, " * 5_000 + "1]\n",
    "many keys": "".join(f"k{i}: 1\n" for i in range(2_000)),
    "a tag of Python": "preset: !!python/object/apply:os.system ['touch {canary}']\n",
    "a module of Python": "preset: !!python/name:os.system\n",
}


@pytest.mark.parametrize("name", BOMBS)
def test_yaml_that_explodes(name: str, tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    canary = tmp_path / "executed"
    path = tmp_path / "bomb.yaml"
    path.write_text(BOMBS[name].replace("{canary}", str(canary)))
    assert contained(lambda: ElipConfig.from_mapping(str(path))) == "no harm"
    assert not canary.exists()
    tried("configuration files that explode or execute")
