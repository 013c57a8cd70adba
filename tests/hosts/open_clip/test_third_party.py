"""Other people's commands and tests, fetched from the package index, with this plugin installed.

OpenCLIP's tests are in its source distribution only; clip_benchmark is an evaluation command
that knows models by their OpenCLIP names. Neither is a dependency: both go into temporary
folders, and the tests skip where the index cannot be reached.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import random
import re
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ET
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("open_clip_train.main")
pytestmark = pytest.mark.slow

# By module; clip_benchmark imports all of them at its start, whatever it evaluates.
EVALUATION = {
    "clip_benchmark": "clip_benchmark==1.6.2",
    "sklearn": "scikit-learn<2",
    "scipy": "scipy",
    "joblib": "joblib",
    "cloudpickle": "cloudpickle",
    "threadpoolctl": "threadpoolctl",
    "narwhals": "narwhals",
    "pycocoevalcap": "pycocoevalcap",
    "pycocotools": "pycocotools",
    "requests": "requests",
    "urllib3": "urllib3",
    "charset_normalizer": "charset-normalizer",
    "certifi": "certifi",
}
# Its accuracy asks for float() of one-element arrays, which numpy 2.4 no longer converts.
NUMPY = "numpy<2.4"


def run(*args: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    quiet = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *map(str, args)],
        env={**os.environ, **quiet, **env},
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )


def pip(*args: str | Path, cwd: Path) -> None:
    """Run pip; skip if the index is out of reach, fail on whatever else goes wrong."""
    if importlib.util.find_spec("pip") is None:
        pytest.skip("this environment has no pip")
    out = run("-m", "pip", "--disable-pip-version-check", *args, cwd=cwd)
    unreachable = re.search(r"NewConnectionError|ConnectTimeout|name resolution", out.stderr)
    if out.returncode and unreachable:
        pytest.skip(f"no package index within reach: {out.stderr.splitlines()[-1]}")
    assert out.returncode == 0, out.stderr


# OpenCLIP's own tests.


@pytest.fixture(scope="module")
def their_tests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests folder in the source distribution of the installed OpenCLIP."""
    folder = tmp_path_factory.mktemp("sdist")
    source = f"open_clip_torch=={version('open_clip_torch')}"
    pip("download", "--no-deps", "--no-binary", "open_clip_torch", source, cwd=folder)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        members = [m for m in tar if Path(m.name).parts[1:2] == ("tests",)]
        tar.extractall(folder, members, filter="data")
    (tests,) = folder.glob("*/tests")
    return tests


def outcomes(report: Path) -> dict[str, str]:
    """Outcome of each test in a JUnit report."""
    cases = ET.parse(report).getroot().iter("testcase")
    return {
        f"{case.get('classname')}::{case.get('name')}": next(
            (child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed"
        )
        for case in cases
    }


def losses(logs: Path) -> list[tuple[str, list[str]]]:
    """Model and logged losses of each run, in order: names of runs start with the time."""
    return [
        (
            log.parent.name.split("-model_")[1].split("-lr_")[0],
            re.findall(r" Loss: ([\d.]+)", log.read_text()),
        )
        for log in sorted(logs.glob("*/out.log"))
    ]


SELECT = ["test_training_simple.py", "test_num_shards.py", "test_hf_model.py::test_poolers"]
# One training of four: each takes minutes on two cores. "training and not mt5" takes them all.
TRAININGS = os.environ.get("ELIP_TEST_TRAININGS", "unfreezing")

# Their command as they call it, but for CPUs that compute float16, its default, only slowly.
LAUNCH = """
import sys, pytest, open_clip, open_clip_train.main as command
print("known:", "elip-ViT-B-32" in open_clip.list_models(), flush=True)
parse = command.parse_args
command.parse_args = lambda args: parse([*args, "--precision", "fp32"])
sys.exit(pytest.main(sys.argv[1:]))
"""


def run_their_tests(tests: Path, active: bool) -> tuple[Any, Any]:
    """Outcomes and losses; the checkpoints, gigabytes, are gone afterwards."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flags = ["-q", "-p", "no:cacheprovider", "--rootdir", tests, "--junitxml", "report.xml"]
        switch = {"OMP_NUM_THREADS": "1", "ELIP_AUTOLOAD": str(int(active))}
        chosen = [*(tests / s for s in SELECT), "-k", f"num_shards or poolers or ({TRAININGS})"]
        out = run("-c", LAUNCH, *flags, *chosen, cwd=folder, **switch)
        assert f"known: {active}" in out.stdout, out.stdout + out.stderr
        print(out.stdout)
        return outcomes(folder / "report.xml"), losses(folder / "logs")


@pytest.mark.newest
def test_open_clips_own_tests_pass_with_the_plugin(their_tests: Path) -> None:
    """A training test, those of its shard counts and of its text poolers, by their own code.

    The only change is `--precision fp32` on the command. Left out: what needs a download (the
    mT5 training, pretrained text encoders, inference), the reader's statistics, which build no
    model, and, for time, the other trainings that `ELIP_TEST_TRAININGS` can ask for.
    """
    found, losses_with = run_their_tests(their_tests, active=True)
    trainings = [name for name in found if "test_training" in name]
    assert trainings and len(found) == len(trainings) + 9
    if set(found.values()) != {"passed"}:
        without, _ = run_their_tests(their_tests, active=False)
        pytest.fail(f"with the plugin: {found}\nwithout: {without}")
    # Their tests assert nothing about training; that each one took place, we do.
    assert len(losses_with) == len(trainings) and all(values for _, values in losses_with)


# clip_benchmark.


@pytest.fixture(scope="module")
def clip_benchmark(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder for PYTHONPATH with clip_benchmark and what it needs beyond this environment."""
    folder = tmp_path_factory.mktemp("clip_benchmark")
    missing = [dist for name, dist in EVALUATION.items() if not importlib.util.find_spec(name)]
    if tuple(map(int, version("numpy").split(".")[:2])) >= (2, 4):
        missing.append(NUMPY)
    pip("install", "--no-deps", "--quiet", "--target", folder, *missing, cwd=folder)
    return str(folder)


def png(source: random.Random) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.frombytes("RGB", (64, 64), source.randbytes(64 * 64 * 3)).save(buffer, "png")
    return buffer.getvalue()


def write_dataset(folder: Path, task: str) -> None:
    """Twelve images in clip_benchmark's layout, each with a class or two captions."""
    source = random.Random(0)
    (folder / "test").mkdir(parents=True)
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for index in range(12):
            label = (
                {"txt": f"noise number {index}\nseen {index} times".encode()}
                if task == "zeroshot_retrieval"
                else {"cls": str(index % 3).encode()}
            )
            for ending, data in {"png": png(source), **label}.items():
                info = tarfile.TarInfo(f"{index:03d}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    (folder / "test" / "nshards.txt").write_text("1")
    (folder / "classnames.txt").write_text("dog\ncat\nfish\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of {c}\n")
    (folder / "dataset_type.txt").write_text(task.removeprefix("zeroshot_"))


def write_weights(path: Path) -> None:
    """Random weights of ViT-tiny."""
    import open_clip
    import torch

    torch.manual_seed(0)
    model = open_clip.create_model("ViT-tiny", pretrained=None)
    torch.save(model.state_dict(), path)


@pytest.mark.parametrize(
    ("task", "metric"),
    [("zeroshot_classification", "acc1"), ("zeroshot_retrieval", "image_retrieval_recall@5")],
)
def test_clip_benchmark_evaluates_our_models_by_name(
    clip_benchmark: str, tmp_path: Path, task: str, metric: str
) -> None:
    """Its command gives for elip-ViT-tiny what it gives for ViT-tiny, same weights."""
    write_dataset(tmp_path / "data", task)
    write_weights(tmp_path / "weights.pt")
    arguments = [
        "--model", "ViT-tiny", "elip-ViT-tiny", "elip-embed-ViT-tiny",
        "--pretrained", "weights.pt", "--dataset", "wds/tiny", "--dataset_root", "data",
        "--task", task, "--num_workers", "0", "--batch_size", "4", "--output", "{model}.json",
    ]  # fmt: skip
    command = ["-m", "clip_benchmark.cli", "eval", *arguments]
    out = run(*command, cwd=tmp_path, PYTHONPATH=clip_benchmark)
    assert out.returncode == 0, out.stderr
    base, ours, embed = (
        json.loads((tmp_path / f"{name}ViT-tiny.json").read_text())
        for name in ("", "elip-", "elip-embed-")
    )
    assert ours["model"] == "elip-ViT-tiny" and embed["model"] == "elip-embed-ViT-tiny"
    assert 0 < ours["metrics"][metric] < 1
    assert ours["metrics"] == base["metrics"]
    assert embed["metrics"].keys() == base["metrics"].keys()
