"""Names and configs: `elip-X` resolves wherever X does."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import torch
from conftest import TINY
from entry_points import elip, installed_package
from PIL import Image
from recorders import recorded_lengths

import elip_plugin
from elip_plugin.errors import (
    ConfigError,
    DataError,
    MissingHostError,
    PlanError,
    UnknownModelError,
)
from elip_plugin.hosts import registry

open_clip = pytest.importorskip("open_clip")
factory = open_clip.factory


def test_every_listed_model_is_its_base_plus_the_key() -> None:
    names = elip_plugin.list_models("open_clip")
    assert {"elip-ViT-B-16", "elip-ViT-B-32", "elip-ViT-L-14", "elip-roberta-ViT-B-32"} <= {*names}
    assert len(names) == len(set(names)) >= 100
    for name in names:
        config, base = open_clip.get_model_config(name), registry.find_model(name).base
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
    name = registry.find_model("elip-ViT-tiny")
    assert (name.host, name.base, name.own_plan) == ("open_clip", "ViT-tiny", False)
    model: Any = elip_plugin.create("elip-ViT-tiny").model
    handle = elip_plugin.find_handle(model)
    assert handle.config == elip_plugin.ElipConfig.preset("paper")
    assert type(model).__name__ == "CLIP" and type(model) is not open_clip.CLIP


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
    with pytest.raises(UnknownModelError, match=r"hosts are \['anyvit', 'lavis', 'open_clip'"):
        elip_plugin.list_models("timm")
    message = r"hosts .*open_clip.*did you mean.*elip-ViT-B-16"
    with pytest.raises(UnknownModelError, match=message) as caught:
        elip_plugin.create("elip-ViT-B16")
    assert str(caught.value)[0] != "'"  # a KeyError would print a repr


def test_a_model_is_created_by_its_own_name_or_its_base_s() -> None:
    presets = {"ViT-tiny": "half", "elip-ViT-tiny": "paper", "elip-fast-ViT-tiny": "fast"}
    for name, preset in presets.items():
        made = elip_plugin.create(name)
        assert made.name == "ViT-tiny" and made.grid_size == (8, 8)
        config = elip_plugin.find_handle(made.model).config
        assert config == elip_plugin.ElipConfig.preset(preset)


def test_a_plan_is_given_as_apply_takes_it_and_a_part_of_one_changes_what_the_name_says() -> None:
    def config(name: str, given: Any) -> Any:
        return elip_plugin.find_handle(elip_plugin.create(name, given).model).config

    half = elip_plugin.ElipConfig.preset("half")
    assert config("ViT-tiny", half) == config("elip-embed-ViT-tiny", "half") == half
    assert config("ViT-tiny", {"preset": "half", "eval_mode": "image"}).eval_mode == "image"
    changed = config("elip-embed-ViT-tiny", {"restore": False})
    assert changed.reducer.name == "ward" and changed.restore is False
    assert config("ViT-tiny", {"eval_mode": "image"}).reducer == half.reducer
    with pytest.raises(ConfigError, match="halff"):
        config("ViT-tiny", "halff")


def test_the_papers_name_says_which_plan_is_recommended() -> None:
    for make in (elip_plugin.create, open_clip.create_model):
        with pytest.warns(UserWarning, match="elip-X has the paper's cuts; .* is elip-half-X"):
            make("elip-ViT-tiny")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for name in ("elip-half-ViT-tiny", "elip-fast-ViT-tiny", "ViT-tiny"):
                make(name)


def test_a_plan_that_a_file_says_is_as_its_user_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**open_clip.get_model_config("ViT-tiny"), "elip": {"preset": "paper"}}
    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-mine", config)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = open_clip.create_model("ViT-mine")
    assert elip_plugin.find_handle(model).config == elip_plugin.ElipConfig.preset("paper")


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


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("not_there:HOST", "not_there:HOST could not be imported"),
        ("entry_points:elip", "entry_points:elip of the entry-point group .* is no Host"),
        ("raising:HOST", r"raising:HOST could not be imported \(a fault\)"),
        ("second:HOST", "second:HOST has the name 'open_clip' of another"),
    ],
)
def test_a_wrong_entry_is_named_and_left_out(tmp_path: Path, place: str, reason: str) -> None:
    (tmp_path / "raising.py").write_text("raise RuntimeError('a fault')")
    (tmp_path / "second.py").write_text(
        "from elip_plugin.hosts.open_clip import OpenClipHost\nHOST = OpenClipHost()\n"
    )
    with (
        installed_package(tmp_path, "wrong", registry.GROUP, place),
        pytest.warns(UserWarning, match=f"a host is left out: {reason}"),
    ):
        assert registry.hosts()["open_clip"] is resolve_name("elip_plugin.hosts.open_clip:HOST")


def test_a_config_with_a_section_of_its_own(tmp_path: Path) -> None:
    """As docs/open_clip.md teaches: each command builds it by its own name."""
    own = {**TINY, "elip": {"preset": "fast", "text_weight": 0.3}}
    (tmp_path / "sectioned.json").write_text(json.dumps(own))
    open_clip.add_model_config(tmp_path)
    made = elip_plugin.create("sectioned")
    assert elip_plugin.find_handle(made.model).config.text_weight == 0.3
    other = elip_plugin.ElipConfig.preset("half")
    made = elip_plugin.create("sectioned", other)
    assert elip_plugin.find_handle(made.model).config == other
    assert registry.find_model("sectioned").own_plan
    elip("plan --model sectioned")
    elip("plan --model sectioned --plan half")
    elip("bench speed --model sectioned --rounds 1 --passes tower --device cpu")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    elip(f"show --model sectioned --image {tmp_path} --text hi -o {tmp_path / 'a.html'}")


def test_pruned_names_follow_a_base_that_was_replaced(tmp_path: Path) -> None:
    """By `add_model_config`, also where the new one cannot be pruned; files of users stay."""
    vision = TINY["vision_cfg"]
    (tmp_path / "replaced.json").write_text(json.dumps(TINY))
    named = {**TINY, "embed_dim": 24, "elip": {"preset": "fast"}}
    (tmp_path / "elip-half-replaced.json").write_text(json.dumps(named))
    open_clip.add_model_config(tmp_path)
    assert open_clip.get_model_config("elip-replaced")["vision_cfg"] == vision
    wider = {**TINY, "vision_cfg": {**vision, "width": 96}}
    (tmp_path / "replaced.json").write_text(json.dumps(wider))
    open_clip.add_model_config(tmp_path)
    assert open_clip.get_model_config("elip-replaced")["vision_cfg"]["width"] == 96
    assert open_clip.get_model_config("elip-half-replaced")["embed_dim"] == 24
    resnet = {**TINY, "vision_cfg": {**vision, "layers": [1, 1, 1, 1]}}
    (tmp_path / "replaced.json").write_text(json.dumps(resnet))
    open_clip.add_model_config(tmp_path)
    assert "elip-replaced" not in elip_plugin.list_models("open_clip")


def test_creating_a_model_leaves_the_random_state() -> None:
    drawn = []
    for seed in (123, 5):
        torch.manual_seed(seed)
        first = torch.rand(1)
        torch.manual_seed(seed)
        models = [elip_plugin.create("ViT-tiny").model for _ in range(2)]
        drawn.append(torch.rand(1))
        assert torch.equal(drawn[-1], first)
        for a, b in zip(*(model.parameters() for model in models), strict=True):
            assert torch.equal(a, b)  # the weights are equal each time nevertheless
    assert not torch.equal(*drawn)


READING = """
import warnings, elip_plugin
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    names = elip_plugin.list_models("open_clip")
said = [str(w.message) for w in caught if "ELIP_MODEL_CONFIGS" in str(w.message)]
print(len(said), *said, "good" in __import__("open_clip").list_models(), len(names) > 100, sep="|")
"""


def told(**env: str) -> list[str]:
    """What a new process says of a user's configs: how many warnings, they, and what is there."""
    env |= {"ELIP_AUTOLOAD": "0", "PATH": os.environ["PATH"]}
    env |= {k: os.environ[k] for k in ("PYTHONPATH",) if k in os.environ}
    command = [sys.executable, "-c", READING]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip().split("|")


@pytest.mark.slow
@pytest.mark.newest
def test_one_bad_config_takes_nothing_else_along(tmp_path: Path) -> None:
    (tmp_path / "good.json").write_text(json.dumps(TINY))
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "odd.json").write_text('{"embed_dim": 8, "vision_cfg": 3, "text_cfg": {}}')
    number, said, good, others = told(ELIP_MODEL_CONFIGS=str(tmp_path))
    assert (number, good, others) == ("1", "True", "True")
    assert "left out" in said and "bad.json is no model config" in said
    number, said, _, others = told(ELIP_MODEL_CONFIGS=str(tmp_path / "none"))
    assert (number, others) == (
        "1",
        "True",
    ) and "none is no model config ([Errno 2] No such" in said


@pytest.mark.parametrize("fault", ["import", "register", "names"])
def test_a_broken_host_takes_no_other_along(tmp_path: Path, fault: str) -> None:
    (tmp_path / "brokenlib.py").write_text("1 / 0" if fault == "import" else "")
    (tmp_path / "brokenlib_elip.py").write_text(
        "from elip_plugin.hosts.base import Host\n"
        "def fail(*args, **options): raise AttributeError('a renamed class')\n"
        "class Broken(Host):\n"
        "    name = module = distribution = 'brokenlib'\n"
        "    install = 'pip install brokenlib'\n"
        "    describe = text_guide = names = find = create = fail\n"
        + ("    register = fail\n" if fault == "register" else "")
        + "HOST = Broken()\n"
    )
    reason = "division by zero" if fault == "import" else "a renamed class"
    said = rf"models of host 'brokenlib' are left out \(.*{reason}\)"
    with installed_package(tmp_path, "brokenlib", registry.GROUP, "brokenlib_elip:HOST"):
        with pytest.warns(UserWarning, match=said) as caught:
            assert "elip-ViT-tiny" in elip_plugin.list_models()
        assert len(caught) == 1
        assert elip_plugin.create("elip-ViT-tiny").name == "ViT-tiny"
        with (
            pytest.warns(UserWarning, match=said),
            pytest.raises(UnknownModelError, match=rf"host 'brokenlib' failed \(.*{reason}"),
        ):
            elip_plugin.create("elip-ViT-tinny")
        assert reason in elip("models --host brokenlib") and "│ ViT-B-16 │" in elip("models")


def test_what_a_checkpoint_is_not_to_blame_for(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "none.pt").write_bytes(b"no weights")
    with pytest.raises(DataError, match=r"none\.pt' of ViT-tiny cannot be read"):
        elip_plugin.create("ViT-tiny", checkpoint=str(tmp_path / "none.pt"))
    with pytest.raises(DataError, match="'no-such-tag' of ViT-tiny cannot be read"):
        elip_plugin.create("ViT-tiny", checkpoint="no-such-tag")

    def broken(*args: Any, **options: Any) -> None:
        raise AttributeError("a renamed class")

    monkeypatch.setattr(factory.CLIP, "model_class", broken)
    with pytest.raises(AttributeError, match="a renamed class"):
        elip_plugin.create("ViT-tiny", checkpoint=str(tmp_path / "none.pt"))


class Mine(open_clip.CLIP):
    """A user's model."""


def test_the_class_order_decides_the_host(tmp_path: Path) -> None:
    mine = Mine(**TINY)
    assert registry.find_host(mine).name == "open_clip"
    theirs = type("Theirs", (open_clip.CLIP,), {"__module__": "transformers.models.theirs"})
    assert registry.find_host(theirs(**TINY)).name == "open_clip"
    (tmp_path / "derived.py").write_text(
        "import open_clip, elip_plugin.hosts.open_clip as ours\n"
        "class Model(open_clip.CLIP): pass\n"
        "class Host(type(ours.HOST)):\n"
        "    name = module = distribution = 'derived'\n"
        "    oldest = ()\n"
        "    def describe(self, module): return 'described'\n"
        "HOST = Host()\n"
    )
    with installed_package(tmp_path, "derived", registry.GROUP, "derived:HOST"):
        model = __import__("derived").Model(**TINY)
        assert registry.find_host(model).name == "derived"
        assert registry.find_host(mine).name == "open_clip"
