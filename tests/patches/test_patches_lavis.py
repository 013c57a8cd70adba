"""The patches for LAVIS' published release: each applies, and repairs what the package repairs.

What they repair is tested by the file that tests the package (test_lavis_repairs.py), here run in
processes of their own, without the package:

    broken   LAVIS as published: each test fails, so that a release without the fault fails here
             and its patch can go
    patched  LAVIS with all patches: its own models and runner_base
"""

from __future__ import annotations

import functools
import importlib.util
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
from xml.etree import ElementTree

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
TESTS = Path(__file__).with_name("test_lavis_repairs.py")
LENGTHS = "RuntimeError: The size of tensor a (5) must match the size of tensor b (17)"
NO_GROUP = "ValueError: Default process group has not been initialized"
FEWER, NO_TEACHER = (
    "test_it_learns_beside_fewer_momentum_tokens",
    "test_it_learns_without_distillation",
)
MOMENTUM = "test_a_checkpointed_momentum_encoder_has_its_weights"

FAULTS = {
    "test_it_trains": ("any-device", "AttributeError: 'NoneType' object has no attribute 'train'"),
    "test_it_trains_by_iterations": ("any-device", r"\w+Error: .*(CUDA|NVIDIA)"),
    "test_an_evaluation_leaves_samples_on_the_cpu": ("any-device", r"\w+Error: .*(CUDA|NVIDIA)"),
    "test_it_joins_what_torchrun_starts": ("any-device", r"\w+Error: .*(CUDA|cuda)"),
    "test_it_joins_what_slurm_starts": ("any-device", "ZeroDivisionError"),
    f"{FEWER}[albef_pretrain]": ("twin-mask", re.escape(LENGTHS)),
    f"{FEWER}[albef_nlvr]": ("twin-mask", re.escape(LENGTHS)),
    MOMENTUM: ("checkpoint-twin", "AssertionError: the twin runs the weights of the other"),
    "test_clip_has_a_loss": ("clip-loss", NO_GROUP),
    "test_nlvr_loads": ("nlvr", "AttributeError: 'list' object has no attribute 'missing_keys'"),
    f"{NO_TEACHER}[albef_nlvr]": ("nlvr", "TypeError: expected Tensor as element 0"),
    f"{NO_TEACHER}[albef_vqa]": ("use-distill-off", "UnboundLocalError: .*'logits_m'"),
    f"{NO_TEACHER}[blip_classification]": (
        "use-distill-off",
        "UnboundLocalError: .*'image_embeds_m'",
    ),
    "test_blip_classifies": ("blip-classification", "TypeError: .* argument 'encoder_output_m'"),
}
"""By test: the patch that repairs it, and how the fault shows."""

HIDDEN = {
    "test_it_resumes_with_what_was_saved": (
        "resume",
        r"RuntimeError: .*\s*Missing key\(s\) in state_dict: \"visual_encoder_m",
    ),
    "test_it_resumes_in_the_order_of_its_epoch": ("resume", "AssertionError: the order of epoch 0"),
    "test_it_resumes_with_the_best_score": (
        "resume",
        "AssertionError: the best score was forgotten",
    ),
}
"""Faults that nobody without a GPU sees before `any-device` is repaired."""

IMPORT = {
    "test_a_language_head_keeps_its_bias": (
        "newer-libraries",
        "ImportError: cannot import name 'apply_chunking_to_forward'",
    ),
}
"""Faults behind which no other test can run."""

ALONE = ["test_it_resumes_with_what_was_saved", "test_it_resumes_with_the_best_score", *FAULTS]
TOGETHER = ["test_it_trains", *list(HIDDEN)[:2], "test_clip_has_a_loss"]

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
    def outcomes(self, form: str, tests: tuple[str, ...], processes: int = 0) -> list[Any]:
        """What each process found, by test; without `processes`, in no group."""
        names = {"patched": PATCHES, "broken": [], "hidden": ["any-device"]}.get(form, [])
        if NEWER and form in ("broken", "hidden") and tests != tuple(IMPORT):
            names = [*names, "newer-libraries"]
        runs = self.folder / f"{form}_{len(tests)}_{processes}"
        runs.mkdir()
        shutil.copytree(self.data, runs / "data")
        env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        env |= {"ELIP_LAVIS_RUNS": str(runs), "ELIP_LAVIS_NEWER": str(int(tests == tuple(IMPORT)))}
        options = []
        if form == "plugin":
            env["ELIP_AUTOLOAD"] = "1"
        else:
            place = self.copy(*names)
            env |= {"ELIP_LAVIS_FORM": "stock", "ELIP_AUTOLOAD": "0"}
            env |= {"PYTHONPATH": str(place), "ELIP_LAVIS_PLACE": str(place)}
            options = ["--noconftest"]  # that file imports the package
        if processes:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                env["MASTER_PORT"] = str(probe.getsockname()[1])
            env |= {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": str(processes)}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
        command += [f"{TESTS}::{test}" for test in ("test_this_is_the_form_that_is_meant", *tests)]
        reports = [runs / f"{i}.xml" for i in range(max(processes, 1))]
        started = [
            subprocess.Popen(
                [*command, f"--junitxml={path}"],
                cwd=self.folder,
                env={**env, **({"RANK": str(i), "LOCAL_RANK": str(i)} if processes else {})},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for i, path in enumerate(reports)
        ]
        outputs = [process.communicate(timeout=300)[0] for process in started]
        found = []
        for path, printed in zip(reports, outputs):
            assert path.is_file(), printed[-6000:]
            found.append(outcomes_in(path))
            meant = found[-1].get("test_this_is_the_form_that_is_meant", "works")
            assert meant == "works", meant
        return found

    def outcome(self, form: str, test: str, tests: Any, processes: int = 0) -> str:
        [outcomes] = self.outcomes(form, tuple(tests), processes)
        # Where the file could not be imported, that is each test's outcome.
        return str(outcomes.get(test) or next(iter(outcomes.values())))


def outcomes_in(report: Path) -> dict[str, str]:
    """By test: "works", or the error."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        faults = [f for kind in ("failure", "error", "skipped") for f in case.iter(kind)]
        texts = [f"{fault.get('message')}\n{fault.text}" for fault in faults]
        found[case.get("name", "")] = "\n".join(texts) or "works"
    return found


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Forms:
    return Forms(tmp_path_factory.mktemp("forms"))


@pytest.mark.slow
@pytest.mark.pins
@pytest.mark.parametrize("test", FAULTS)
def test_fault(forms: Forms, test: str) -> None:
    outcome = forms.outcome("broken", test, FAULTS)
    assert re.search(FAULTS[test][1], outcome), outcome


@pytest.mark.slow
@pytest.mark.parametrize("test", IMPORT)
def test_fault_beside_newer_libraries(forms: Forms, test: str) -> None:
    outcome = forms.outcome("broken", test, IMPORT)
    assert re.search(IMPORT[test][1], outcome), outcome


@pytest.mark.slow
@pytest.mark.pins
@pytest.mark.parametrize("test", HIDDEN)
def test_fault_behind_that_of_other_devices(forms: Forms, test: str) -> None:
    """Also shows that the patch for devices does alone, with one process in a group."""
    tests = ["test_it_trains", *HIDDEN]
    assert forms.outcome("hidden", "test_it_trains", tests, 1) == "works"
    outcome = forms.outcome("hidden", test, tests, 1)
    assert re.search(HIDDEN[test][1], outcome, re.S), outcome


@pytest.mark.slow
@pytest.mark.parametrize("test", ALONE)
def test_repaired(forms: Forms, test: str) -> None:
    assert forms.outcome("patched", test, ALONE) == "works"


@pytest.mark.slow
@pytest.mark.parametrize("form", ["patched", "plugin"])
def test_repaired_beside_newer_libraries(forms: Forms, form: str) -> None:
    assert [forms.outcome(form, test, IMPORT) for test in IMPORT] == ["works"]


@pytest.mark.slow
@pytest.mark.parametrize("form", [pytest.param("patched", marks=pytest.mark.pins), "plugin"])
def test_repaired_on_two_processes(forms: Forms, form: str) -> None:
    for outcomes in forms.outcomes(form, tuple(TOGETHER), 2):
        assert {test: outcomes[test] for test in TOGETHER} == dict.fromkeys(TOGETHER, "works")
