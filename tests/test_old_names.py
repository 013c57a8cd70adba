"""Yesterday's configs, presets and public calls: each works, and warns once by the new name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from recorders import recorded_lengths

import elip_plugin
from elip_plugin import ElipConfig, Stage, apply
from elip_plugin.errors import ConfigError

STAGES = [{"block": 2, "lookahead": 1, "keep": 0.9}, {"block": 4, "lookahead": 1, "keep": 0.5}]
OLD = {
    "eval": ("image", "eval_mode"),
    "guide": ("batch", "guide_source"),
    "warm_in": (0.25, "warmup"),
    "full_finish": (0.5, "final_unpruned"),
}


def warned(call: Callable[[], Any]) -> tuple[Any, list[str]]:
    """What a call returns, and the text of each of its warnings, all of old names."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call()
    assert all(issubclass(w.category, DeprecationWarning) for w in caught), caught
    return result, [str(w.message) for w in caught]


@pytest.mark.parametrize("base", [{"preset": "fast"}, {"stages": STAGES}], ids=["preset", "stages"])
@pytest.mark.parametrize("old", OLD)
def test_a_config_with_an_old_key(old: str, base: dict[str, Any]) -> None:
    value, new = OLD[old]
    expected, silent = warned(lambda: ElipConfig.from_mapping({**base, new: value}))
    given = {**base, old: value}
    config, (warning,) = warned(lambda: ElipConfig.from_mapping(given))
    assert config == expected and getattr(config, new) == value and silent == []
    assert f"{old!r} is now called {new!r}" in warning
    assert given == {**base, old: value}


def test_a_file_of_yesterday_with_all_old_keys() -> None:
    given = {"reducer": "elip", "stages": STAGES, "text_anneal": 0.5, "total_steps": 100}
    given |= {old: value for old, (value, _) in OLD.items()}
    config, found = warned(lambda: ElipConfig.from_mapping(json.loads(json.dumps(given))))
    assert (config.eval_mode, config.guide_source, config.total_steps) == ("image", "batch", 100)
    assert (config.warmup, config.final_unpruned, config.text_anneal) == (0.25, 0.5, 0.5)
    for old in (*OLD, "total_steps"):
        assert sum(f"key {old!r} " in text for text in found) == 1, found
    assert len(found) == len(OLD) + 1
    assert "update_progress(step, total_steps)" in next(t for t in found if "total_steps" in t)
    # What is written from it has new names only, and reads back.
    mapping = config.to_mapping()
    assert not {*OLD} & {*mapping}
    again, _ = warned(lambda: ElipConfig.from_mapping(mapping))
    assert again == config


def test_a_warning_names_the_line_that_has_the_old_name() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ElipConfig((Stage(2, 1, 0.5),), eval="image")
        ElipConfig.from_mapping({"eval": "image"})
    assert [warning.filename for warning in caught] == [__file__] * 2


def test_yaml_as_lavis_reads_it() -> None:
    omegaconf = pytest.importorskip("omegaconf")
    text = "elip:\n  preset: fast\n  eval: text\n  guide: batch\n"
    node = omegaconf.OmegaConf.create(text).elip
    config, found = warned(lambda: ElipConfig.from_mapping(node))
    assert (config.eval_mode, config.guide_source) == ("text", "batch") and len(found) == 2


@pytest.mark.parametrize("old", OLD)
def test_the_constructor_and_the_attribute(old: str) -> None:
    value, new = OLD[old]
    stages = (Stage(2, 1, 0.5),)
    config, (warning,) = warned(lambda: ElipConfig(stages=stages, **{old: value}))
    assert config == ElipConfig(stages, **{new: value})
    assert f"{old!r} is now called {new!r}" in warning
    read, (warning,) = warned(lambda: getattr(config, old))
    assert read == value and f"{old!r} is now called {new!r}" in warning
    _, silent = warned(lambda: (getattr(config, new), repr(config), hash(config)))
    assert silent == [] and f"{new}={value!r}" in repr(config) and f" {old}=" not in repr(config)


def test_a_fault_in_an_old_key_is_named_by_the_new_one() -> None:
    with pytest.warns(DeprecationWarning), pytest.raises(ConfigError, match="eval_mode must be"):
        ElipConfig.from_mapping({"eval": "txt"})


@pytest.mark.parametrize("preset", ["paper", "fast"])
def test_presets_and_positions_of_yesterday(preset: str) -> None:
    by_name, found = warned(lambda: ElipConfig.preset(preset))
    assert found == [] and by_name.reference_depth == 12
    assert ElipConfig.from_mapping(preset) == by_name
    assert ElipConfig(by_name.stages, 0.2, True, "full", 12) == by_name


def test_variant_is_the_model_name() -> None:
    variant, (warning,) = warned(lambda: elip_plugin.Variant)
    assert variant is elip_plugin.ModelName
    assert "Variant is now called ModelName" in warning
    with pytest.raises(AttributeError, match="no attribute 'Variants'"):
        elip_plugin.Variants  # noqa: B018


def test_public_calls_of_yesterday_run_without_a_warning(
    tiny_clip: Callable[..., Any], pairs: tuple[torch.Tensor, torch.Tensor]
) -> None:
    model, (images, texts) = tiny_clip(), pairs

    def calls() -> list[int]:
        handle = apply(model, {"preset": "fast"})
        assert elip_plugin.find_handle(model).config == handle.config
        assert handle.plan == elip_plugin.plan(handle.config, num_patches=64, depth=12)
        with recorded_lengths(model.visual.transformer.resblocks) as lengths:
            model(images, texts)
            with elip_plugin.guide(model, model.encode_text(texts)), handle.trace():
                model.encode_image(images)
        with handle.disabled():
            model(images, texts)
        handle.remove()
        variant = elip_plugin.get("elip-ViT-tiny")
        assert (variant.name, variant.host, variant.base) == (
            "elip-ViT-tiny", "open_clip", "ViT-tiny",
        )  # fmt: skip
        assert variant.preset == "paper" and variant.name in elip_plugin.list_models("open_clip")
        elip_plugin.find_handle(variant.create()).remove()
        return lengths

    lengths, found = warned(calls)
    assert found == [] and lengths == 2 * ([65] * 2 + [59] * 2 + [43] * 6 + [27] * 2)


def test_a_model_config_of_yesterday_builds_by_its_name(tmp_path: Path) -> None:
    """In a process of its own: OpenCLIP reads the folder once."""
    pytest.importorskip("open_clip")
    config = {**TINY, "elip": {"preset": "fast", "eval": "image", "warm_in": 0.5}}
    (tmp_path / "mine.json").write_text(json.dumps(config))
    code = (
        "import open_clip, elip_plugin; model = open_clip.create_model('mine')\n"
        "config = elip_plugin.find_handle(model).config; print(config.eval_mode, config.warmup)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "always::DeprecationWarning:elip_plugin", "-c", code],
        env={**os.environ, "ELIP_MODEL_CONFIGS": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.split()[-2:] == ["image", "0.5"], done.stderr


@pytest.mark.parametrize(
    "use",
    [
        lambda: ElipConfig((Stage(2, 1, 0.5),), eval="text"),  # type: ignore[call-arg]
        lambda: ElipConfig.from_mapping({"eval": "text"}),
        lambda: ElipConfig((Stage(2, 1, 0.5),)).eval,  # type: ignore[attr-defined]
        lambda: ElipConfig((Stage(2, 1, 0.5),), total_steps=5),
    ],
    ids=["constructor", "mapping", "attribute", "total_steps"],
)
def test_a_deprecation_names_the_line_that_uses_it(use: Any) -> None:
    with pytest.warns(DeprecationWarning) as caught:
        use()
    places = {(warning.filename, warning.lineno) for warning in caught}
    assert places == {(__file__, use.__code__.co_firstlineno)}
