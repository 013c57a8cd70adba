"""Every command finds the same model and plan by whatever its options say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from elip_plugin.cli.main import app
from elip_plugin.cli.target import Target, resolve, with_keep
from elip_plugin.config import PRESETS, ElipConfig
from elip_plugin.errors import ConfigError, ElipError
from elip_plugin.label import label_of, plan_name
from elip_plugin.patching.install import find_pruner

pytest.importorskip("open_clip")

BASE = "ViT-tiny-6"
THIRD = ",".join(f"{stage.keep:g}" for stage in ElipConfig.preset("third").stages)

COMMANDS = {
    "plan": "plan {target} -o {out}/plan.json",
    "show": "show {target} --image {pictures} --most 1 -o {out}/show.html",
    "bench speed": "bench speed {target} --batch 2 --rounds 1 --passes tower -o {out}",
    "check": "check {target} --random --images {pictures} --neighbors 2 -o {out}",
    "export": "export {target} --random --format torch -o {out}/tower",
}
WRITTEN = {
    "show": "show.html",
    "bench speed": "speed.json",
    "check": "index.html",
    "export": "tower/manifest.json",
}
"""Files that say what they are about."""

WAYS = {
    "name": f"--model elip-third-{BASE}",
    "preset": f"--model {BASE} --plan third",
    "file": f"--model elip-half-{BASE} --plan {{out}}/third.json",
    "keep": f"--model elip-third-{BASE} --keep {THIRD}",
    "plan and keep": f"--model elip-fast-{BASE} --plan third --keep {THIRD}",
}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(4):
        Image.effect_noise((70, 64), 40 + 30 * i).save(folder / f"{i}.png")
    return folder


def said_by(words: str) -> str:
    made = CliRunner(env={"COLUMNS": "400"}).invoke(app, words.split(), catch_exceptions=False)
    assert made.exit_code == 0, made.output
    return str(made.output)


@pytest.mark.parametrize("command", COMMANDS)
def test_one_plan_in_every_spelling(
    command: str, tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[ElipConfig, str]] = []
    build = Target.build

    def recorded(self: Target, **options: Any) -> Any:
        made = build(self, **options)
        found.append((find_pruner(made.model).config, label_of(made)))
        return made

    monkeypatch.setattr(Target, "build", recorded)
    pruned = command in ("check", "export")
    for way, target in WAYS.items():
        out = tmp_path / way.replace(" ", "-")
        out.mkdir()
        third = {"elip": PRESETS["third"].to_mapping()}
        (out / "third.json").write_text(json.dumps(third))
        target = target.format(out=out)
        said = said_by(COMMANDS[command].format(target=target, pictures=pictures, out=out))
        config, label = found[-1]
        wanted = {**third["elip"], "eval_mode": "image" if pruned else "full"}
        assert config.to_mapping() == wanted, way
        weights = "none" if command == "plan" else "random"
        evaluation = "pruned" if pruned else "not pruned"
        assert label == f"{BASE}, plan third, evaluation {evaluation}, weights {weights}", way
        assert label in said, said
        if command in WRITTEN:
            assert label in (out / WRITTEN[command]).read_text()
    assert len(found) == len(WAYS)


def test_a_default_is_for_names_that_say_no_plan() -> None:
    def name(model: str, **options: Any) -> str:
        made = resolve(model, embeds=True, **options).build(device="meta")
        return plan_name(find_pruner(made.model).config)

    assert name(BASE) == "embed"
    assert name(f"elip-third-{BASE}") == name(f"elip-third-{BASE}", plan="third") == "third"
    assert name(f"elip-{BASE}") == "paper"
    assert name(BASE, plan="fast") == "fast"
    assert name(f"elip-third-{BASE}", keep="0.8") == "half with keep 0.8"
    assert name(f"elip-fast-{BASE}", keep="0.8,0.5,0.3") == "fast with keep 0.8,0.5,0.3"


@pytest.mark.parametrize(
    ("config", "name"),
    [
        *((name, name) for name in PRESETS),
        ({"preset": "third", "eval_mode": "image"}, "third"),
        ({"preset": "half", "eval_mode": "image"}, "half"),
        ({"preset": "paper", "text_weight": 0.0}, "paper with text_weight 0.0"),
        ({"reducer": "random"}, "fast with text_weight 0.0, reducer random"),
        ({"preset": "fast", "warmup": 0.5}, "fast with warmup 0.5"),
        (
            {"stages": [{"block": 1, "lookahead": 1, "keep": 0.4}]},
            "paper with reference_depth None, keep 0.4, stages 1",
        ),
    ],
)
def test_plans_have_names(config: Any, name: str) -> None:
    assert plan_name(ElipConfig.from_mapping(config)) == name


def test_weights_have_names(tmp_path: Path) -> None:
    import open_clip
    import torch

    path = tmp_path / "epoch_1.pt"
    torch.save({"state_dict": open_clip.create_model(BASE).state_dict()}, path)
    target = resolve(BASE, "half")
    assert label_of(target.build(checkpoint=str(path))).endswith("weights epoch_1.pt")
    made = target.build()
    made.weights = "laion2b_s34b_b79k"  # a tag
    assert label_of(made).endswith(", weights laion2b_s34b_b79k")
    assert label_of(made, with_plan=False) == f"{BASE}, weights laion2b_s34b_b79k"


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ("plan --model elip-embed-X --keep 0.8,0.5", r"2 values, and the plan 'embed' has 1 stage"),
        ("plan --model elip-fast-X --keep 0.8", r"1 values, and the plan 'fast' has 3 stages"),
        ("plan --model X --keep a,b", "--keep 'a,b': write ratios"),
        (
            "plan --model X --plan fast --keep 2.0,0.5,0.4",
            "--keep 2.0,0.5,0.4, for the",
        ),
        ("show --model X --plan hlaf --image p.png -o a.html", r"--plan hlaf: .* mean \['half'\]"),
        ("bench speed --model X --plan none.yaml", r"--plan none.yaml: .* cannot be read"),
        ("check --model elip-half-no --random --images pictures --neighbors 2 -o o", "not known"),
        ("check --model X --images pictures --neighbors 2 -o out", "needs weights: give --check"),
    ],
)
def test_faults_name_the_option(
    words: str, fault: str, tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = CliRunner().invoke(app, words.replace("X", BASE).split())
    assert isinstance(made.exception, ElipError)
    assert re.search(fault, str(made.exception)), made.exception
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_a_keep_that_a_wrong_plan_had_is_its_own(tmp_path: Path) -> None:
    """The advice of an error is typed."""
    with pytest.raises(ConfigError) as caught:
        with_keep(ElipConfig.preset("embed"), "0.8,0.5,0.3")
    advised = re.search(r"its own --keep (\S+),", str(caught.value))
    assert advised is not None
    assert with_keep(ElipConfig.preset("embed"), advised[1]) == ElipConfig.preset("embed")
