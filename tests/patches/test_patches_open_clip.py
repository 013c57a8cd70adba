"""The mends for published releases of OpenCLIP: each applies, and each mends what it says.

Every fault is shown first, on an unpatched copy of the installed packages, so that a release
without the fault fails here and its patch can go.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

open_clip = pytest.importorskip("open_clip")
pytest.importorskip("open_clip_train")

RELEASE = version("open_clip_torch")
FOLDER = Path(__file__).parents[2] / "patches" / f"open_clip-{RELEASE}"
if not FOLDER.is_dir():
    pytest.skip(f"no patches for open_clip_torch {RELEASE}", allow_module_level=True)

PATCHES = sorted(path.stem for path in FOLDER.glob("*.patch"))
TOOLS = {
    "patch": ["patch", "--dry-run", "--fuzz=0", "-p1", "-i"],
    "git": ["git", "apply", "--check", "-p1"],
}

TINY_CLIP = """
import json, os
import torch, open_clip

assert open_clip.__file__.startswith(os.getcwd()), open_clip.__file__
with open(os.path.join(os.environ["ELIP_MODEL_CONFIGS"], "ViT-tiny-6.json")) as file:
    config = json.load(file)
torch.manual_seed(0)
images, texts = torch.randn(3, 3, 64, 64), torch.randint(1, 49000, (3, 24))
"""

TRACE = """
for output_dict in True, False:
    model = open_clip.CLIP(**config, output_dict=output_dict)
    traced = open_clip.trace_model(model, batch_size=2)
    assert isinstance(traced, torch.jit.ScriptModule)
    with torch.inference_mode():
        torch.testing.assert_close(traced(images, texts), model(images, texts))
        torch.testing.assert_close(traced.encode_image(images), model.encode_image(images))
        torch.testing.assert_close(traced.encode_text(texts), model.encode_text(texts))
print("works")
"""

QK_NORM = """
def gradients(model, checkpointing):
    model.zero_grad()
    model.set_grad_checkpointing(checkpointing)
    image, text, scale = model(images, texts)
    torch.nn.functional.cross_entropy(scale * image @ text.T, torch.arange(3)).backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}

for towers in ["vision_cfg"], ["vision_cfg", "text_cfg"]:
    for tower in towers:
        config[tower]["qk_norm"] = True
    model = open_clip.CLIP(**config)
    checkpointed = gradients(model, True)
    torch.testing.assert_close(checkpointed, gradients(model, False))
    model.forward_intermediates(images, image_indices=1, intermediates_only=True)
    model.set_grad_checkpointing(True)
    model.forward_intermediates(images, image_indices=1, intermediates_only=True)
print("works")
"""


def ignore(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "__pycache__"]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the installed packages, alone in its folder."""
    installed = Path(open_clip.__file__).parent.parent
    for package in "open_clip", "open_clip_train":
        shutil.copytree(installed / package, tmp_path / "copy" / package, ignore=ignore)
    return tmp_path / "copy"


def apply(copy: Path, name: str, command: list[str]) -> subprocess.CompletedProcess[str]:
    # Git would look for a repository above, and leave out what that one ignores.
    env = {**os.environ, "GIT_CEILING_DIRECTORIES": str(copy.parent)}
    command = [*command, str(FOLDER / f"{name}.patch")]
    return subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True)


@pytest.fixture
def mend(copy: Path) -> Callable[[str], None]:
    """Applies a patch to the copy."""

    def mend(name: str) -> None:
        if not shutil.which("git"):
            pytest.skip("git is not installed")
        done = apply(copy, name, ["git", "apply", "-p1"])
        assert done.returncode == 0, done.stderr

    return mend


def run(copy: Path, *args: str, **extra: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", **extra}
    command = [sys.executable, *args]
    return subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, timeout=300)


def assert_fault(done: subprocess.CompletedProcess[str], error: str) -> None:
    assert done.returncode != 0 and error in done.stderr, done.stdout + done.stderr


def assert_works(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0 and done.stdout.endswith("works\n"), done.stdout + done.stderr


def only_with(name: str) -> None:
    if name not in PATCHES:
        pytest.skip(f"open_clip_torch {RELEASE} does not have the fault of {name}.patch")


def test_there_are_patches() -> None:
    assert {"ddp-on-cpu", "trace"} <= set(PATCHES)


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("name", PATCHES)
def test_applies_cleanly(copy: Path, name: str, tool: str) -> None:
    if not shutil.which(tool):
        pytest.skip(f"{tool} is not installed")
    done = apply(copy, name, TOOLS[tool])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "offset" not in done.stdout


@pytest.mark.parametrize("name", PATCHES)
def test_says_why(name: str) -> None:
    header = (FOLDER / f"{name}.patch").read_text().split("\n--- ")[0]
    assert re.search(r"^Shows as: \w*Error: ", header, re.M)
    assert re.search(r"^Upstream: (no upstream issue found|#\d+)", header, re.M)
    assert f"`{name}.patch`" in (FOLDER / "README.md").read_text()


@pytest.mark.slow
def test_trace(copy: Path, mend: Callable[[str], None]) -> None:
    command = ["-c", TINY_CLIP + TRACE]
    assert_fault(run(copy, *command, ELIP_AUTOLOAD="0"), "TypeError: ones(): argument 'size'")
    mend("trace")
    assert_works(run(copy, *command, ELIP_AUTOLOAD="0"))


@pytest.mark.slow
def test_qk_norm_checkpointing(copy: Path, mend: Callable[[str], None]) -> None:
    only_with("qk-norm-checkpointing")
    command = ["-c", TINY_CLIP + QK_NORM]
    error = "TypeError: CustomResidualAttentionBlock.forward() takes from 2 to 3 positional"
    assert_fault(run(copy, *command, ELIP_AUTOLOAD="0"), error)
    mend("qk-norm-checkpointing")
    assert_works(run(copy, *command, ELIP_AUTOLOAD="0"))


def train(copy: Path, model: str) -> subprocess.CompletedProcess[str]:
    """Two processes, two steps; `-m --` because torchrun would take --logs for its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return run(
        copy, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1",
        "--master-port", str(port), "-m", "--", "open_clip_train.main", "--model", model,
        "--dataset-type", "synthetic", "--train-num-samples", "8", "--batch-size", "2",
        "--epochs", "1", "--workers", "0", "--precision", "fp32", "--warmup", "1",
        "--device", "cpu", "--dist-backend", "gloo", "--log-every-n-steps", "1",
        "--logs", str(copy.parent / "logs"), "--name", model,
    )  # fmt: skip


@pytest.mark.slow
def test_ddp_on_cpu(copy: Path, mend: Callable[[str], None]) -> None:
    error = "ValueError: DistributedDataParallel device_ids and output_device arguments only work"
    assert_fault(train(copy, "ViT-tiny"), error)
    shutil.rmtree(copy.parent / "logs")
    mend("ddp-on-cpu")
    done = train(copy, "elip-ViT-tiny")
    assert done.returncode == 0, done.stderr
    log = copy.parent / "logs" / "elip-ViT-tiny"
    assert (log / "checkpoints" / "epoch_1.pt").is_file()
    text = (log / "out.log").read_text()
    assert "with multiple processes" in text and "elip: 65 tokens -> " in text
    assert len(re.findall(r"Train Epoch: 0 .* Loss: [\d.]+", text)) == 2
