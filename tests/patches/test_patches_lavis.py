"""The mends for LAVIS' published release: each applies, and mends what the plugin mends as well.

The checks, in `lavis_patched.py`, are the same for three forms, so that they cannot drift apart:

    broken   LAVIS as published, without the plugin: each check fails, so that a release
             without the fault fails here and its patch can go
    patched  LAVIS with all patches, without the plugin: its own models and runner_base
    plugin   LAVIS as published, with our models and elip_runner
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("lavis") is None:
    pytest.skip("LAVIS is not installed", allow_module_level=True)

RELEASE = version("salesforce-lavis")
FOLDER = Path(__file__).parents[2] / "patches" / f"lavis-{RELEASE}"
if not FOLDER.is_dir():
    pytest.skip(f"no patches for salesforce-lavis {RELEASE}", allow_module_level=True)

from lavis_runs import write_data  # noqa: E402

PATCHES = sorted(path.stem for path in FOLDER.glob("*.patch"))
TOOLS = {
    "patch": ["patch", "--fuzz=0", "-p1", "-i"],
    "git": ["git", "apply", "-p1"],
}
SCRIPT = Path(__file__).parents[1] / "lavis_patched.py"
LENGTHS = "RuntimeError: The size of tensor a (5) must match the size of tensor b (17)"
NO_GROUP = "ValueError: Default process group has not been initialized"

FAULTS = {
    "trains": ("any-device", "AttributeError: 'NoneType' object has no attribute 'train'"),
    "iterates": ("any-device", r"\w+Error: .*(CUDA|NVIDIA)"),
    "evaluates": ("any-device", r"\w+Error: .*(CUDA|NVIDIA)"),
    "torchrun": ("any-device", r"\w+Error: .*(CUDA|cuda)"),
    "slurm": ("any-device", "ZeroDivisionError"),
    "mask_pretrain": ("twin-mask", re.escape(LENGTHS)),
    "mask_nlvr": ("twin-mask", re.escape(LENGTHS)),
    "twin_weights": ("checkpoint-twin", "AssertionError: the twin runs the weights of the other"),
    "clip_loss": ("clip-loss", NO_GROUP),
    "nlvr_loading": ("nlvr", "AttributeError: 'list' object has no attribute 'missing_keys'"),
    "distill_off_nlvr": ("nlvr", "TypeError: expected Tensor as element 0"),
    "distill_off_vqa": ("use-distill-off", "UnboundLocalError: .*'logits_m'"),
    "distill_off_classification": ("use-distill-off", "UnboundLocalError: .*'image_embeds_m'"),
    "classification": ("blip-classification", "TypeError: .* argument 'encoder_output_m'"),
}
"""By check: the patch that mends it, and how the fault shows."""

HIDDEN = {
    "resumes": ("resume", r"RuntimeError: .*\s*Missing key\(s\) in state_dict: \"visual_encoder_m"),
    "resumed_order": ("resume", "AssertionError: the order of epoch 0"),
    "resumed_best": ("resume", "AssertionError: the best score was forgotten"),
}
"""Faults that nobody without a GPU sees before `any-device` is mended."""

IMPORT = {
    "newer": ("newer-libraries", "ImportError: cannot import name 'apply_chunking_to_forward'"),
}
"""Faults behind which no other check can run."""

ALONE = [*IMPORT, *FAULTS, "resumes", "resumed_best"]
TOGETHER = ["trains", "resumes", "resumed_order", "clip_loss"]

ONLY_PATCHED = {
    # The plugin would have to copy LAVIS' forwards.
    "distill_off_nlvr",
    "distill_off_vqa",
    "distill_off_classification",
    # It mends its own runner only.
    "iterates",
    # It leaves SLURM to LAVIS.
    "slurm",
}
"""Checks that the plugin does not pass."""

NEWER = int(version("numpy").split(".")[0]) > 1 or int(version("timm").split(".")[0]) > 0
"""Whether LAVIS is beside newer libraries here, where unpatched it is not imported."""


def ignore(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "__pycache__"]


def apply(copy: Path, name: str, tool: str, *options: str) -> subprocess.CompletedProcess[str]:
    # Git would look for a repository above, and leave out what that one ignores.
    env = {**os.environ, "GIT_CEILING_DIRECTORIES": str(copy.parent)}
    command = [*TOOLS[tool], str(FOLDER / f"{name}.patch"), *options]
    return subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True)


def installed() -> Path:
    spec = importlib.util.find_spec("lavis")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def touched(name: str) -> list[str]:
    return re.findall(r"^--- a/(\S+)$", (FOLDER / f"{name}.patch").read_text(), re.M)


def copy_files(to: Path) -> Path:
    """A copy of the files that any patch touches."""
    for path in {path for name in PATCHES for path in touched(name)}:
        (to / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(installed().parent / path, to / path)
    return to


def any_tool() -> str:
    found = [tool for tool in TOOLS if shutil.which(tool)]
    if not found:
        pytest.skip("neither patch nor git is installed")
    return found[0]


def test_there_is_a_patch_for_each_fault() -> None:
    assert {patch for patch, _ in {**FAULTS, **HIDDEN, **IMPORT}.values()} == set(PATCHES)


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("name", PATCHES)
def test_applies_cleanly(tmp_path: Path, name: str, tool: str) -> None:
    if not shutil.which(tool):
        pytest.skip(f"{tool} is not installed")
    done = apply(copy_files(tmp_path / "copy"), name, tool)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "offset" not in done.stdout


@pytest.mark.parametrize("tool", TOOLS)
def test_all_apply_in_any_order(tmp_path: Path, tool: str) -> None:
    if not shutil.which(tool):
        pytest.skip(f"{tool} is not installed")
    shuffled = random.Random(0)
    results = []
    for i, order in enumerate([PATCHES, PATCHES[::-1], shuffled.sample(PATCHES, len(PATCHES))]):
        copy = copy_files(tmp_path / str(i))
        for name in order:
            done = apply(copy, name, tool)
            assert done.returncode == 0, (order, name, done.stdout + done.stderr)
        results.append({path: path.read_text() for path in sorted(copy.rglob("*.py"))}.values())
    assert all(list(result) == list(results[0]) for result in results)


@pytest.mark.parametrize("name", PATCHES)
def test_says_why(name: str) -> None:
    header = (FOLDER / f"{name}.patch").read_text().split("\n--- ")[0]
    assert re.search(r"^Mend: ", header)
    assert re.search(r"^Shows as: (\w*Error: |no error: )", header, re.M)
    assert re.search(r"^Upstream: (no upstream issue found|#\d+)", header, re.M)
    assert f"`{name}.patch`" in (FOLDER / "README.md").read_text()


def test_no_old_name_of_numpy_is_left(tmp_path: Path) -> None:
    """Also not in ALPRO, which no check runs."""
    shutil.copytree(installed(), tmp_path / "lavis", ignore=ignore)
    for name in PATCHES:
        assert apply(tmp_path, name, any_tool()).returncode == 0
    old = re.compile(r"\bnp\.Inf\b")
    assert not [path for path in tmp_path.rglob("*.py") if old.search(path.read_text())]


# ---------------------------------------------------------------------------------------------
# What they mend. The checks of a form share one process.


class Forms:
    """Runs checks on one of the forms, each run once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.data.mkdir()
        write_data(self.data)

    @functools.cache  # noqa: B019  lives as long as the module's tests
    def copy(self, *names: str) -> Path:
        copy = self.folder / ("copy_" + "_".join(names))
        shutil.copytree(installed(), copy / "lavis", ignore=ignore)
        for name in names:
            done = apply(copy, name, any_tool())
            assert done.returncode == 0, done.stdout + done.stderr
        return copy

    @functools.cache  # noqa: B019
    def outcomes(self, form: str, checks: tuple[str, ...], processes: int = 0) -> list[Any]:
        """What each process found, and what it wrote; without `processes`, in no group."""
        names = {"patched": PATCHES, "broken": [], "hidden": ["any-device"]}.get(form, [])
        if NEWER and form in ("broken", "hidden") and checks != tuple(IMPORT):
            names = [*names, "newer-libraries"]
        runs = self.folder / f"{form}_{len(checks)}_{processes}"
        env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        env |= {"ELIP_AUTOLOAD": "1" if form == "plugin" else "0"}
        if form != "plugin":
            env["PYTHONPATH"] = str(self.copy(*names))
        if processes:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                env["MASTER_PORT"] = str(probe.getsockname()[1])
            env |= {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": str(processes)}
        command = [sys.executable, str(SCRIPT), "plugin" if form == "plugin" else "stock"]
        command += [str(self.data), str(runs), *checks]
        started = [
            subprocess.Popen(
                command,
                cwd=self.folder,
                env={**env, **({"RANK": str(i), "LOCAL_RANK": str(i)} if processes else {})},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in range(max(processes, 1))
        ]
        errors = [process.communicate(timeout=300)[1][-6000:] for process in started]
        assert not any(process.returncode for process in started), errors
        found = []
        for i, error in enumerate(errors):
            outcome = json.loads(Path(f"{runs}.{i}.json").read_text())
            if "lavis" in outcome:
                used = installed().parent if form == "plugin" else self.copy(*names)
                assert Path(outcome["lavis"]).is_relative_to(used)
            found.append((outcome, error))
        return found

    def outcome(self, form: str, check: str, checks: Any, processes: int = 0) -> tuple[str, str]:
        [(outcome, error)] = self.outcomes(form, tuple(checks), processes)
        return outcome[check], error


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Forms:
    return Forms(tmp_path_factory.mktemp("forms"))


@pytest.mark.slow
@pytest.mark.parametrize("check", FAULTS)
def test_fault(forms: Forms, check: str) -> None:
    outcome, error = forms.outcome("broken", check, FAULTS)
    assert re.match(FAULTS[check][1], outcome), outcome + error


@pytest.mark.slow
@pytest.mark.parametrize("check", IMPORT)
def test_fault_beside_newer_libraries(forms: Forms, check: str) -> None:
    outcome, error = forms.outcome("broken", check, IMPORT)
    assert re.match(IMPORT[check][1], outcome), outcome + error


@pytest.mark.slow
@pytest.mark.parametrize("check", HIDDEN)
def test_fault_behind_that_of_other_devices(forms: Forms, check: str) -> None:
    """Also shows that the patch for devices does alone, with one process in a group."""
    checks = ["trains", *HIDDEN]
    assert forms.outcome("hidden", "trains", checks, 1)[0] == "works"
    outcome, error = forms.outcome("hidden", check, checks, 1)
    assert re.match(HIDDEN[check][1], outcome, re.S), outcome + error


@pytest.mark.slow
@pytest.mark.parametrize("check", ALONE)
@pytest.mark.parametrize("form", ["patched", "plugin"])
def test_mended(forms: Forms, form: str, check: str) -> None:
    outcome, error = forms.outcome(form, check, ALONE)
    if form == "plugin" and check in ONLY_PATCHED:
        assert outcome != "works", f"take {check} off the list of what only the patches mend"
        return
    assert outcome == "works", outcome + error


@pytest.mark.slow
@pytest.mark.parametrize("form", ["patched", "plugin"])
def test_mended_on_two_processes(forms: Forms, form: str) -> None:
    for outcome, error in forms.outcomes(form, tuple(TOGETHER), 2):
        assert {check: outcome[check] for check in TOGETHER} == dict.fromkeys(TOGETHER, "works"), (
            error
        )
