"""Names and configs: `elip-X` resolves wherever X does."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from entry_points import installed_package
from recorders import recorded_lengths

import elip_plugin
from elip_plugin.errors import ConfigError, MissingHostError, PlanError, UnknownModelError
from elip_plugin.hosts import registry

open_clip = pytest.importorskip("open_clip")
factory = open_clip.factory


def test_every_listed_model_is_its_base_plus_the_key() -> None:
    names = elip_plugin.list_models("open_clip")
    assert {"elip-ViT-B-16", "elip-ViT-B-32", "elip-ViT-L-14", "elip-roberta-ViT-B-32"} <= {*names}
    assert len(names) == len(set(names)) >= 100
    for name in names:
        config, base = open_clip.get_model_config(name), elip_plugin.get(name).base
        preset = config.pop("elip")["preset"]
        assert name == ("elip-" if preset == "paper" else f"elip-{preset}-") + base
        assert config == open_clip.get_model_config(base)


def test_tokenizer_and_pretrained_tags_are_those_of_the_base() -> None:
    for tag in open_clip.list_pretrained_tags_by_model("ViT-B-16"):
        expected = open_clip.get_pretrained_cfg("ViT-B-16", tag)
        assert expected and open_clip.get_pretrained_cfg("elip-ViT-B-16", tag) == expected
    text = ["a cat on a sofa"]
    base, ours = open_clip.get_tokenizer("ViT-tiny"), open_clip.get_tokenizer("elip-ViT-tiny")
    assert ours(text).shape == (1, 24)
    assert torch.equal(base(text), ours(text))


def test_weights_load_from_a_file_of_the_base(tmp_path: Path) -> None:
    base = open_clip.create_model("ViT-tiny")
    torch.save(base.state_dict(), tmp_path / "base.pt")
    ours = open_clip.create_model("elip-ViT-tiny", pretrained=str(tmp_path / "base.pt"))
    torch.save(ours.state_dict(), tmp_path / "ours.pt")
    back = open_clip.create_model("ViT-tiny", pretrained=str(tmp_path / "ours.pt"))
    for key, value in base.state_dict().items():
        assert torch.equal(value, back.state_dict()[key]), key


def test_look_up_and_create() -> None:
    name = elip_plugin.get("elip-ViT-tiny")
    assert (name.host, name.base, name.preset) == ("open_clip", "ViT-tiny", "paper")
    model: Any = name.create(output_dict=True)
    handle = elip_plugin.find_handle(model)
    assert handle.config == elip_plugin.ElipConfig.preset("paper")
    assert type(model).__name__ == "ElipCLIP"


def test_the_plan_follows_the_forced_image_size() -> None:
    model = open_clip.create_model("elip-ViT-tiny", force_image_size=96)
    assert elip_plugin.find_handle(model).plan.num_patches == 144


def test_models_added_later_resolve_with_their_own_config(tmp_path: Path) -> None:
    own = {**TINY, "elip": {"preset": "fast", "text_weight": 0.3}}
    (tmp_path / "late-plain.json").write_text(json.dumps(TINY))
    (tmp_path / "late-own.json").write_text(json.dumps(own))
    open_clip.add_model_config(tmp_path)
    assert "elip-late-plain" in open_clip.list_models()
    assert "elip-late-own" not in open_clip.list_models()  # it is pruned under its own name
    model = open_clip.create_model("late-own").train()
    assert elip_plugin.find_handle(model).config.text_weight == 0.3
    with recorded_lengths(model.visual.transformer.resblocks) as lengths:
        model(torch.randn(2, 3, 64, 64), torch.randint(1, 100, (2, 24)))
    assert lengths == [65] * 2 + [59] * 2 + [43] * 6 + [27] * 2


def test_base_models_are_built_as_ever() -> None:
    assert type(open_clip.create_model("ViT-tiny")) is open_clip.CLIP


@pytest.mark.parametrize(
    ("elip", "error", "message"),
    [
        ({"preset": "papper"}, ConfigError, "'papper'.*did you mean.*'paper'"),
        ({"keep": 0.5}, ConfigError, "key 'keep' is not known"),
        ({"stages": [{"block": 12, "lookahead": 1, "keep": 0.5}]}, PlanError, "blocks 0 to 11"),
    ],
)
def test_bad_configs_fail_by_name(
    tmp_path: Path, elip: dict[str, Any], error: type[Exception], message: str
) -> None:
    name = f"bad-{error.__name__}-{'-'.join(elip)}"
    (tmp_path / f"{name}.json").write_text(json.dumps({**TINY, "elip": elip}))
    open_clip.add_model_config(tmp_path)
    with pytest.raises(error, match=message):
        open_clip.create_model(name)


def test_an_unknown_name_is_an_error_with_near_ones() -> None:
    with pytest.raises(UnknownModelError, match=r"did you mean.*elip-ViT-B-16") as caught:
        elip_plugin.get("elip-ViT-B16")
    assert str(caught.value)[0] != "'"  # a KeyError would print a repr
    with pytest.raises(UnknownModelError, match=r"hosts are \['lavis', 'open_clip'"):
        elip_plugin.list_models("timm")
    with pytest.raises(UnknownModelError, match=r"hosts .*open_clip.*did you mean.*elip-ViT-B-16"):
        elip_plugin.create("elip-ViT-B16")


def test_a_model_is_created_by_its_own_name_or_its_base_s() -> None:
    for name in ("ViT-tiny", "elip-ViT-tiny", "elip-fast-ViT-tiny"):
        made = elip_plugin.create(name)
        assert made.name == "ViT-tiny" and made.grid_size == (8, 8)
        preset = "fast" if "fast" in name else "paper"
        config = elip_plugin.find_handle(made.model).config
        assert config == elip_plugin.ElipConfig.preset(preset)


def test_a_missing_host_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.hosts()["open_clip"], "module", "no_such_host")
    with pytest.raises(MissingHostError, match=r"pip install 'elip-plugin\[open-clip\]'"):
        elip_plugin.list_models("open_clip")
    assert "elip-ViT-B-16" not in elip_plugin.list_models()


def test_the_libraries_of_a_missing_host_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lavis", None)  # as if it were not installed
    prepared: list[str] = []
    for name, host in registry.hosts().items():
        monkeypatch.setattr(host, "prepare", functools.partial(prepared.append, name))
    with pytest.raises(MissingHostError):
        registry.load_host("lavis")
    registry.load_host("open_clip")
    assert prepared == ["open_clip"]


def test_an_entry_that_is_no_host_is_refused(tmp_path: Path) -> None:
    with (
        installed_package(tmp_path, "wrong", registry.GROUP, "entry_points:elip"),
        pytest.raises(ConfigError, match="is no Host"),
    ):
        registry.hosts()


def test_a_broken_package_of_somebody_else_is_named_and_left_out(tmp_path: Path) -> None:
    with (
        installed_package(tmp_path, "broken", registry.GROUP, "not_there:HOST"),
        pytest.warns(UserWarning, match="not_there:HOST could not be imported"),
    ):
        assert "open_clip" in registry.hosts()
