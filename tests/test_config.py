"""A configuration is checked as a whole, says how to mend it, and survives any mapping."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from elip_plugin.config import PRESETS, ElipConfig, Stage
from elip_plugin.errors import ConfigError, ElipError
from elip_plugin.reducers import find_reducer

TOME = find_reducer("tome")
STAGES = (Stage(2, 2, 0.9), Stage(4, 6, 0.65), Stage(10, 2, 0.4))
OTHER = ElipConfig(
    stages=(Stage(0, 1, 1.0), Stage(3, 2, 0.5), Stage(7, 1, 20)),
    text_weight=0.5,
    merge=False,
    eval_mode="image",
    reference_depth=24,
)
CONFIGS = [*PRESETS.values(), OTHER, ElipConfig(stages=STAGES)]


def by_constructor(stages: Any = STAGES, **fields: Any) -> ElipConfig:
    return ElipConfig(stages=stages, **fields)


def by_mapping(stages: Any = STAGES, **fields: Any) -> ElipConfig:
    if isinstance(stages, tuple):
        stages = [vars(s) if isinstance(s, Stage) else s for s in stages]
    return ElipConfig.from_mapping({"stages": stages, **fields})


BOTH_WAYS = (by_constructor, by_mapping)


def message(make: Callable[..., Any], *args: Any, **fields: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        make(*args, **fields)
    return str(caught.value)


def assert_only_fault(text: str, *facts: str) -> None:
    """One line that has these: what it is about, what is allowed, what was given."""
    assert text.startswith("ELIP config: ")
    assert "\n" not in text
    for fact in facts:
        assert fact in text


def refusal(*args: Any, **fields: Any) -> str:
    """The error that the constructor and a mapping both give."""
    one, two = (message(make, *args, **fields) for make in BOTH_WAYS)
    assert one == two
    return one


def taken(*args: Any, **fields: Any) -> ElipConfig:
    """The configuration that the constructor and a mapping both give."""
    one, two = (make(*args, **fields) for make in BOTH_WAYS)
    assert one == two
    return one


# Rules: what was given, what is allowed.


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf, True, "0.2", None])
def test_text_weight_outside_0_to_1_is_refused(value: Any) -> None:
    text = refusal(text_weight=value)
    assert_only_fault(text, "text_weight", "0 to 1", f"got {value!r}")


@pytest.mark.parametrize("value", [0, 1, 0.0, 0.2, 1.0])
def test_text_weight_from_0_to_1_is_taken(value: float) -> None:
    assert taken(text_weight=value).text_weight == value


@pytest.mark.parametrize("value", [1, 0, "true", None])
def test_merge_other_than_boolean_is_refused(value: Any) -> None:
    assert_only_fault(refusal(merge=value), "merge", "true or false", f"got {value!r}")


@pytest.mark.parametrize("value", ["Full", "train", None, True, ["full"]])
def test_unknown_eval_mode_is_refused_with_the_choices(value: Any) -> None:
    text = refusal(eval_mode=value)
    assert_only_fault(text, "eval_mode", "['full', 'image', 'text']", f"got {value!r}")


@pytest.mark.parametrize("value", ["full", "image", "text"])
def test_each_eval_mode_is_taken(value: str) -> None:
    assert taken(eval_mode=value).eval_mode == value


@pytest.mark.parametrize("value", [0, -12, 12.0, True, "12"])
def test_reference_depth_other_than_a_depth_is_refused(value: Any) -> None:
    text = refusal(reference_depth=value)
    assert_only_fault(text, "reference_depth", "from 1 up", f"got {value!r}")


@pytest.mark.parametrize("value", [-1, 2.0, True, "2", None])
def test_block_other_than_an_index_is_refused(value: Any) -> None:
    text = refusal((Stage(value, 1, 0.5),))
    assert_only_fault(text, "stage 0: block", "from 0 up", f"got {value!r}")


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "1", None])
def test_lookahead_other_than_a_positive_count_is_refused(value: Any) -> None:
    text = refusal((Stage(2, value, 0.5),))
    assert_only_fault(text, "stage 0: lookahead", "from 1 up", f"got {value!r}")


@pytest.mark.parametrize("value", [0.0, -0.5, 1.5, 2.0, math.nan, True, False, "0.9", None])
def test_keep_other_than_ratio_or_count_is_refused(value: Any) -> None:
    text = refusal((Stage(2, 1, value),))
    assert_only_fault(text, "stage 0: keep", "(0, 1]", "from 2 up", f"got {value!r}")


@pytest.mark.parametrize("value", [0, -3])
def test_keep_as_count_below_2_is_refused(value: int) -> None:
    text = refusal((Stage(2, 1, value),))
    assert_only_fault(text, "stage 0: keep", "2 or more", f"got {value}")


def test_integer_1_is_ambiguous_and_the_error_tells_both_ways_out() -> None:
    text = refusal((Stage(2, 1, 1),))
    assert_only_fault(text, "stage 0: keep 1", "1.0 to keep all", "from 2 up")


@pytest.mark.parametrize("value", [1.0, 1e-9, 0.999, 2, 196])
def test_keep_as_ratio_or_count_is_taken(value: float) -> None:
    kept = taken((Stage(2, 1, value),)).stages[0].keep
    assert kept == value
    assert type(kept) is type(value)


@pytest.mark.parametrize("value", [None, 3, "paper", {"block": 2}])
def test_stages_other_than_a_list_are_refused(value: Any) -> None:
    text = refusal(value)
    assert_only_fault(text, "stages must be a list", f"got {value!r}")


@pytest.mark.parametrize("value", [3, "x", None, (2, 2, 0.9)])
def test_a_stage_of_another_type_is_refused(value: Any) -> None:
    text = refusal((Stage(1, 1, 0.9), value))
    assert_only_fault(text, "stage 1: ", "Stage (block, lookahead, keep)", f"got {value!r}")


def test_a_fault_names_its_stage() -> None:
    text = message(by_mapping, (STAGES[0], STAGES[1], Stage(10, 0, 0.4)))
    assert_only_fault(text, "stage 2: lookahead")


# All faults in one error.


def test_every_fault_is_named_in_one_error() -> None:
    stages = [
        {"block": -4, "lookahead": 0, "keep": 1.5},
        {"block": 9, "lookahead": 1, "keep": 1, "ratio": 0.5},
        {"block": 2, "lookahead": 1, "keep": 0.9},
    ]
    given = {
        "stages": stages,
        "lambda": 0.8,
        "evaluate": "full",
        "text_weight": 7,
        "merge": "yes",
        "eval_mode": "txt",
        "reference_depth": 0,
    }
    lines = message(ElipConfig.from_mapping, given).split("\n")
    expected = [
        "key 'lambda' is not known; keys are ['preset', 'stages', 'text_weight', 'merge',",
        "key 'evaluate' is not known",
        "stage 1: key 'ratio' is not known; keys are ['block', 'lookahead', 'keep', 'until']",
        "stage 0: block must be an integer from 0 up, got -4",
        "stage 0: lookahead must be an integer from 1 up, got 0",
        "stage 0: keep must be a ratio in (0, 1] or a count from 2 up, got 1.5",
        "stage 1: keep 1 is ambiguous",
        "text_weight must be a number from 0 to 1, got 7",
        "merge must be true or false, got 'yes'",
        "eval_mode must be one of ['full', 'image', 'text'], got 'txt'",
        "reference_depth must be null or an integer from 1 up, got 0",
    ]
    assert lines[0] == f"ELIP config: {len(expected)} faults"
    for number, (line, fault) in enumerate(zip(lines[1:], expected, strict=True), 1):
        assert line.startswith(f"  {number}. {fault}")


def test_constructor_names_every_fault_in_one_error() -> None:
    text = message(ElipConfig, (Stage(2, 0, 0.5), Stage(1, 1, 3.5)), 2, None, "", 0)
    assert text.startswith("ELIP config: 6 faults\n")


def test_an_incomplete_stage_names_what_it_lacks_and_what_it_has() -> None:
    text = message(ElipConfig.from_mapping, {"stages": [{"block": 2, "layers": 3}]})
    assert "2 faults" in text
    assert (
        "stage 0: key 'layers' is not known; keys are ['block', 'lookahead', 'keep', 'until']"
        in text
    )
    missing = "stage 0: ['lookahead', 'keep'] missing; a stage has ['block', 'lookahead', 'keep']"
    assert missing in text


def test_faults_after_an_incomplete_stage_keep_their_number() -> None:
    stages = [{"block": 2}, {"block": 4, "lookahead": 0, "keep": 0.5}]
    text = message(ElipConfig.from_mapping, {"stages": stages})
    assert "2 faults" in text
    assert "stage 0: ['lookahead', 'keep'] missing" in text
    assert "stage 1: lookahead must be" in text


def test_an_unknown_preset_is_named_beside_other_faults() -> None:
    text = message(ElipConfig.from_mapping, {"preset": "quick", "eval_mode": "txt", "speed": 2})
    assert "3 faults" in text
    assert (
        "preset 'quick'" in text
        and "['embed', 'fast', 'half', 'level', 'lowres', 'paper', 'third']" in text
    )
    assert "eval_mode must be" in text
    assert "key 'speed'" in text


def test_a_reducer_is_not_asked_about_a_field_that_has_a_fault() -> None:
    with pytest.raises(ConfigError, match="text_weight must be a number") as caught:
        ElipConfig.from_mapping({"preset": "half", "text_weight": "a"})
    assert "reads no text" not in str(caught.value)


def test_an_option_at_its_default_says_nothing_whatever_object_it_is() -> None:
    given = {"name": "similarity", "choice_loss": float("0")}
    config = ElipConfig.from_mapping({"reducer": given})
    assert config == ElipConfig.from_mapping({"reducer": "similarity"})
    assert config.to_mapping()["reducer"] == "similarity"


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("keep", "it belongs into each of the stages: [{block: ..., keep: ...}, ...]"),
        ("choice_loss", "it is an option of a reducer: reducer: {name: similarity, choice_loss"),
        ("textweight", "did you mean ['text_weight']"),
    ],
)
def test_a_key_in_the_wrong_place_is_told_where_it_belongs(key: str, place: str) -> None:
    text = message(ElipConfig.from_mapping, {"reducer": "similarity", key: 0.5})
    assert_only_fault(text, f"key {key!r} is not known; {place}")


@pytest.mark.parametrize("value", ["tome", type(TOME), {"name": "tome"}, None])
def test_the_constructor_takes_no_name_of_a_reducer(value: Any) -> None:
    text = message(by_constructor, reducer=value, text_weight=0.0)
    assert_only_fault(text, "reducer must be a Reducer, such as find_reducer('tome')", "got ")


@pytest.mark.parametrize("value", ["tome", TOME, {"name": "tome"}])
def test_a_mapping_takes_a_reducer_by_its_name_or_itself(value: Any) -> None:
    assert ElipConfig.from_mapping({"reducer": value}) == ElipConfig.preset("half")


def test_the_constructor_shows_its_fields() -> None:
    names = [*inspect.signature(ElipConfig).parameters]
    assert names == [field.name for field in dataclasses.fields(ElipConfig)]


def test_config_errors_are_caught_as_elip_and_value_errors() -> None:
    assert issubclass(ConfigError, ElipError)
    assert issubclass(ConfigError, ValueError)


# Presets and overrides.


def test_paper_preset_is_the_papers_plan() -> None:
    assert ElipConfig.preset("paper") == ElipConfig(STAGES, 0.2, True, "full", 12)


def test_fast_preset_is_the_paper_with_lookahead_1() -> None:
    paper = ElipConfig.preset("paper")
    stages = tuple(dataclasses.replace(stage, lookahead=1) for stage in paper.stages)
    assert ElipConfig.preset("fast") == dataclasses.replace(paper, stages=stages)


def test_embed_prunes_in_evaluation_and_its_reducer_alone_is_this_plan() -> None:
    embed = ElipConfig.preset("embed")
    alone = ElipConfig.from_mapping({"reducer": "ward"})
    assert embed == dataclasses.replace(alone, eval_mode="image")


@pytest.mark.parametrize("make", [ElipConfig.preset, ElipConfig.from_mapping])
def test_an_unknown_preset_is_refused_with_the_choices(make: Any) -> None:
    text = message(make, "quick")
    assert (
        "preset 'quick'" in text
        and "['embed', 'fast', 'half', 'level', 'lowres', 'paper', 'third']" in text
    )


@pytest.mark.parametrize("value", [["paper"], {"name": "paper"}, 3, None])
def test_a_preset_that_is_no_name_is_a_config_error(value: Any) -> None:
    text = message(ElipConfig.from_mapping, {"preset": value})
    known = ["embed", "fast", "half", "level", "lowres", "paper", "third"]
    assert_only_fault(text, f"preset {value!r}", f"known are {known}")


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_bare_string_is_a_preset(name: str) -> None:
    assert ElipConfig.from_mapping(name) == PRESETS[name]
    assert ElipConfig.from_mapping({"preset": name}) == PRESETS[name]


@pytest.mark.parametrize("nothing", [None, {}])
def test_nothing_is_the_recommended_preset(nothing: Any) -> None:
    assert ElipConfig.from_mapping(nothing) == PRESETS["half"]
    assert ElipConfig.from_mapping(nothing, default="fast") == PRESETS["fast"]


def test_a_default_is_for_what_names_no_plan() -> None:
    asked = {"preset": "fast", "reducer": "similarity"}
    changed = ElipConfig.from_mapping({"eval_mode": "text"}, default=asked)
    assert changed == ElipConfig.from_mapping({**asked, "eval_mode": "text"})
    for given in ({"preset": "third"}, {"reducer": "evit"}, vars(ElipConfig(STAGES))):
        assert ElipConfig.from_mapping(given, default=asked) == ElipConfig.from_mapping(given)


@pytest.mark.parametrize(
    ("reducer", "preset"),
    [("tome", "half"), ("ward", "embed"), ("elip", "paper"), ("evit", "fast")],
)
def test_a_reducer_by_itself_has_its_own_stages(reducer: str, preset: str) -> None:
    config = ElipConfig.from_mapping({"reducer": reducer})
    assert config.reducer == find_reducer(reducer) and config.stages == PRESETS[preset].stages
    assert config.eval_mode == "full"


OVERRIDES = {"text_weight": 0.0, "merge": False, "eval_mode": "image", "final_unpruned": 0.5}


@pytest.mark.parametrize("field", OVERRIDES)
@pytest.mark.parametrize("preset", [{"preset": "fast"}, {}])
def test_fields_override_the_preset_one_by_one(preset: dict[str, Any], field: str) -> None:
    base = PRESETS[preset.get("preset", "half")]
    config = ElipConfig.from_mapping({**preset, field: OVERRIDES[field]})
    assert config == dataclasses.replace(base, **{field: OVERRIDES[field]})
    assert config != base or base.text_weight == OVERRIDES[field]


def test_a_preset_with_stages_is_refused() -> None:
    given = {"preset": "fast", "stages": [{"block": 2, "lookahead": 1, "keep": 0.5}]}
    text = message(ElipConfig.from_mapping, given)
    assert_only_fault(text, "either 'preset' or 'stages'")


def test_stages_without_reference_depth_are_taken_as_they_stand() -> None:
    assert by_mapping(STAGES).reference_depth is None
    assert by_mapping(STAGES, reference_depth=12) == PRESETS["paper"]


@pytest.mark.parametrize("given", [3, ["paper"], PRESETS["paper"]])
def test_something_else_than_a_mapping_is_refused(given: Any) -> None:
    text = message(ElipConfig.from_mapping, given)
    assert "a mapping or a preset's name" in text
    assert f"got {type(given).__name__}" in text


# Mappings there and back.


@pytest.mark.parametrize("config", CONFIGS)
def test_json_gives_the_config_back(config: ElipConfig) -> None:
    text = json.dumps(config.to_mapping())
    assert ElipConfig.from_mapping(json.loads(text)) == config


@pytest.mark.parametrize("config", CONFIGS)
def test_a_mapping_holds_only_plain_values(config: ElipConfig) -> None:
    mapping = config.to_mapping()
    assert json.loads(json.dumps(mapping)) == mapping
    fields = [field.name for field in dataclasses.fields(config)]
    assert list(mapping) == fields


@pytest.mark.parametrize("config", CONFIGS)
def test_omegaconf_gives_the_config_back(config: ElipConfig) -> None:
    omegaconf = pytest.importorskip("omegaconf")
    tree = omegaconf.OmegaConf.create({"model": {"elip": config.to_mapping()}})
    node = omegaconf.OmegaConf.create(omegaconf.OmegaConf.to_yaml(tree)).model.elip
    assert isinstance(node.stages, omegaconf.ListConfig)
    assert isinstance(node.stages[0], omegaconf.DictConfig)

    read = ElipConfig.from_mapping(node)

    assert read == config
    assert type(read.stages) is tuple
    assert all(type(stage) is Stage for stage in read.stages)


def test_omegaconf_parts_inside_a_dict_are_read() -> None:
    omegaconf = pytest.importorskip("omegaconf")
    stages = omegaconf.OmegaConf.create(PRESETS["paper"].to_mapping()["stages"])
    given = {"stages": stages, "reference_depth": 12}
    assert ElipConfig.from_mapping(given) == PRESETS["paper"]
    given = {"stages": list(stages), "reference_depth": 12}
    assert ElipConfig.from_mapping(given) == PRESETS["paper"]


def test_omegaconf_interpolations_are_resolved() -> None:
    omegaconf = pytest.importorskip("omegaconf")
    tree = omegaconf.OmegaConf.create({"t": 0.5, "elip": {"preset": "fast", "text_weight": "${t}"}})
    assert ElipConfig.from_mapping(tree.elip) == dataclasses.replace(
        PRESETS["fast"], text_weight=0.5
    )


def test_omegaconf_faults_read_like_those_of_a_dict() -> None:
    omegaconf = pytest.importorskip("omegaconf")
    given = {"stages": [{"block": 2, "lookahead": 1, "keep": 1}, {"block": 3}], "evil": "full"}
    node = omegaconf.OmegaConf.create(given)
    assert message(ElipConfig.from_mapping, node) == message(ElipConfig.from_mapping, given)


# Nothing changes afterwards.


def test_config_and_stage_are_frozen() -> None:
    config = ElipConfig.preset("paper")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.eval_mode = "image"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.stages[0].keep = 0.5  # type: ignore[misc]


def test_equal_configs_hash_equal() -> None:
    for config in CONFIGS:
        assert hash(ElipConfig.from_mapping(config.to_mapping())) == hash(config)
    assert len(set(CONFIGS)) == len(CONFIGS)


def test_a_list_of_stages_is_kept_as_a_tuple() -> None:
    stages = list(STAGES)
    config = ElipConfig(stages=stages)  # type: ignore[arg-type]
    stages.clear()
    assert config.stages == STAGES
    assert isinstance(hash(config), int)


def test_changing_the_given_mapping_changes_nothing() -> None:
    given = PRESETS["paper"].to_mapping()
    config = ElipConfig.from_mapping(given)
    given["stages"][0]["keep"] = 0.1
    given["stages"].pop()
    given["eval_mode"] = "image"
    assert config == PRESETS["paper"]


def test_reading_a_mapping_leaves_it_as_it_was() -> None:
    given = {"stages": [dataclasses.asdict(stage) for stage in STAGES]}
    before = json.dumps(given)
    ElipConfig.from_mapping(given)
    assert json.dumps(given) == before


def test_changing_a_returned_mapping_changes_nothing() -> None:
    mapping = PRESETS["paper"].to_mapping()
    mapping["stages"][0]["keep"] = 0.1
    mapping["stages"].clear()
    assert PRESETS["paper"].to_mapping()["stages"][0]["keep"] == 0.9


# Stages with an end.


@pytest.mark.parametrize("value", [5.0, True, "9"])
def test_an_end_that_is_no_block_is_refused(value: Any) -> None:
    text = refusal((Stage(2, 1, 0.5, value),))
    assert_only_fault(text, "stage 0: until", "null or an integer", f"got {value!r}")


@pytest.mark.parametrize("reducer", ["tome", "pool"])
def test_an_end_needs_a_reducer_that_keeps_tokens(reducer: str) -> None:
    keep = 0.25 if reducer == "pool" else 0.5
    made = find_reducer(reducer)
    text = refusal((Stage(0, 1, keep, 5),), reducer=made, text_weight=0.0)
    assert_only_fault(text, f"reducer '{reducer}'", "leave until out")


def test_an_end_goes_through_every_mapping() -> None:
    config = ElipConfig((Stage(2, 1, 0.5, 6), Stage(6, 1, 0.25)))
    mapping = json.loads(json.dumps(config.to_mapping()))
    assert [*mapping["stages"][0]] == ["block", "lookahead", "keep", "until"]
    assert [*mapping["stages"][1]] == ["block", "lookahead", "keep"]  # as before there were ends
    assert ElipConfig.from_mapping(mapping) == config
    mapping["stages"][1]["until"] = None
    assert ElipConfig.from_mapping(mapping) == config
