"""OpenCLIP's own training command, unmodified, with each of the flags that could interfere.

Most runs call the command's `main` in this process, so that the sequence length inside each
block can be recorded; one runs the command itself.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("open_clip_train.main")
pytestmark = pytest.mark.slow

BATCH, STEPS = 64, 14
FULL = [65] * 12
PLANNED = [65] * 2 + [59] * 2 + [43] * 6 + [27] * 2


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The real pairs, rendered small."""
    pytest.importorskip("resvg_py")
    from elip_plugin.data import write_openmoji

    return write_openmoji(tmp_path_factory.mktemp("emoji") / "set", size=64)


def data_flags(emoji: Any) -> list[str]:
    return [
        "--dataset-type", "webdataset", "--train-data", emoji.train_pattern,
        "--train-num-samples", str(BATCH * STEPS), "--workers", "1",
    ]  # fmt: skip


def run_flags(name: str, logs: Path, model: str = "elip-ViT-tiny") -> list[str]:
    return [
        "--model", model, "--batch-size", str(BATCH), "--epochs", "1", "--lr", "3e-3",
        "--warmup", "4", "--precision", "fp32", "--log-every-n-steps", "1",
        "--logs", str(logs), "--name", name,
    ]  # fmt: skip


def losses(log: Path) -> list[float]:
    return [float(x) for x in re.findall(r" Loss: ([\d.]+)", log.read_text())]


def assert_falls(values: list[float]) -> None:
    assert len(values) >= 6
    assert sum(values[-3:]) < 0.97 * sum(values[:3]), values


@pytest.fixture
def recorded() -> Iterator[dict[str, list[int]]]:
    """Lengths inside every block of every pruned tower, in training and in evaluation."""
    from open_clip.transformer import ResidualAttentionBlock

    from elip_plugin.patching.swap import Patched

    seen: dict[str, list[int]] = {"train": [], "eval": []}

    def record(module: Any, args: Any, kwargs: Any = None) -> None:
        if isinstance(module, Patched) and isinstance(module, ResidualAttentionBlock):
            seen["train" if module.training else "eval"].append(args[0].shape[1])

    hook = torch.nn.modules.module.register_module_forward_pre_hook(record)
    yield seen
    hook.remove()


def main_calls(lengths: list[int], lookahead: bool) -> list[list[int]]:
    """Split recorded lengths into forwards of 12 main blocks each.

    The global hook sees lookahead calls as well (paper plan: 2 + 6 + 2 per forward), at known
    places: before blocks 2, 4 and 10.
    """
    forwards, order = [], []
    for block in range(12):
        order += [False] * ({2: 2, 4: 6, 10: 2}.get(block, 0) if lookahead else 0) + [True]
    assert len(lengths) % len(order) == 0
    for start in range(0, len(lengths), len(order)):
        part = lengths[start : start + len(order)]
        forwards.append([n for n, main in zip(part, order) if main])
    return forwards


@pytest.fixture
def train(
    emoji: Any, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., SimpleNamespace]:
    from open_clip_train.main import main

    # Only where a test asks for it: a compiler would trace the recording, too.
    watched = "recorded" in request.fixturenames
    recorded = request.getfixturevalue("recorded") if watched else {}
    # The command adds handlers to the root logger, and pytest closes what they write to.
    monkeypatch.setattr(logging.root, "handlers", [])

    def run(*flags: str, name: str = "run", model: str = "elip-ViT-tiny") -> SimpleNamespace:
        for lengths in recorded.values():
            lengths.clear()
        main([*data_flags(emoji), *run_flags(name, tmp_path, model), *flags])
        folder = tmp_path / name
        return SimpleNamespace(
            folder=folder, losses=losses(folder / "out.log"), checkpoints=folder / "checkpoints"
        )

    return run


Train = Callable[..., SimpleNamespace]
Recorded = dict[str, list[int]]


@pytest.mark.parametrize(
    ("flags", "forwards"),
    [
        ((), STEPS),
        (("--accum-freq", "2"), 2 * STEPS),
        (("--siglip",), STEPS),
        (("--precision", "amp_bf16"), STEPS),
        (("--precision", "pure_bf16"), STEPS),
        (("--lock-image", "--lock-image-unlocked-groups", "6"), STEPS),
        (("--local-loss", "--gather-with-grad"), STEPS),
    ],
    ids=lambda value: "_".join(value) or "plain" if isinstance(value, tuple) else "",
)
def test_prunes_as_planned_and_learns(
    train: Train, recorded: Recorded, flags: tuple[str, ...], forwards: int
) -> None:
    result = train(*flags)
    assert main_calls(recorded["train"], lookahead=True) == [PLANNED] * forwards
    if "pure_bf16" not in flags:  # it rounds updates away in so few steps
        assert_falls(result.losses)


def test_lock_image_whole(train: Train, recorded: Recorded) -> None:
    result = train("--lock-image")
    assert main_calls(recorded["train"], lookahead=True) == [PLANNED] * STEPS
    assert_falls(result.losses)


def test_grad_checkpointing(train: Train, recorded: Recorded) -> None:
    result = train("--grad-checkpointing")
    # Backward runs the 12 main blocks again, last first, and no lookahead.
    step = len(recorded["train"]) // STEPS
    assert step == (12 + 10) + 12
    for start in range(0, len(recorded["train"]), step):
        part = recorded["train"][start : start + step]
        assert main_calls(part[:22], lookahead=True) == [PLANNED]
        assert part[22:] == PLANNED[::-1]
    assert_falls(result.losses)


def test_force_patch_dropout(train: Train, recorded: Recorded) -> None:
    train("--force-patch-dropout", "0.5")
    planned = [33] * 2 + [28 + 2] * 2 + [20 + 2] * 6 + [12 + 2] * 2
    assert main_calls(recorded["train"], lookahead=True) == [planned] * STEPS


def test_evaluation_uses_all_tokens(train: Train, recorded: Recorded, emoji: Any) -> None:
    shard = str(next((emoji.out / "held_out").glob("*.tar")))
    train("--val-data", shard, "--val-num-samples", "500")
    assert main_calls(recorded["eval"], lookahead=False) == [FULL] * 8  # 500 pairs by 64


def test_pretrained_and_distilled_from_a_file_of_the_base(
    train: Train, recorded: Recorded, tmp_path: Path
) -> None:
    import open_clip

    torch.manual_seed(5)
    teacher = tmp_path / "teacher.pt"
    torch.save(open_clip.create_model("ViT-tiny").state_dict(), teacher)
    result = train("--pretrained", str(teacher), name="pretrained")
    assert main_calls(recorded["train"], lookahead=True) == [PLANNED] * STEPS
    assert_falls(result.losses)

    train("--distill-model", "ViT-tiny", "--distill-pretrained", str(teacher), name="base-teaches")
    assert main_calls(recorded["train"], lookahead=True) == [PLANNED] * STEPS
    assert recorded["eval"] == []
    train("--distill-model", "elip-ViT-tiny", "--distill-pretrained", str(teacher), name="twin")
    assert main_calls(recorded["eval"], lookahead=False) == [FULL] * STEPS


def test_a_run_of_the_base_resumes_as_pruned_and_back(train: Train) -> None:
    first = train(name="base", model="ViT-tiny")
    again = train("--resume", str(first.checkpoints / "epoch_1.pt"), "--epochs", "2", name="pruned")
    assert_falls(first.losses[:3] + again.losses[-3:])
    train(
        "--resume", str(again.checkpoints / "epoch_2.pt"), "--epochs", "3",
        name="back", model="ViT-tiny",
    )  # fmt: skip


def test_resume_equals_an_uninterrupted_run(
    train: Train, monkeypatch: pytest.MonkeyPatch, emoji: Any
) -> None:
    """With data that does not depend on the run, the second epoch is the same bit for bit."""
    import open_clip_train.main as command

    generator = torch.Generator().manual_seed(3)
    batches = [
        (
            torch.randn(16, 3, 64, 64, generator=generator),
            torch.randint(1, 49000, (16, 24), generator=generator),
        )
        for _ in range(3)
    ]

    class Loader(list[Any]):
        num_batches, num_samples = 3, 48

    fixed = SimpleNamespace(dataloader=Loader(batches), set_epoch=lambda epoch: None)
    monkeypatch.setattr(command, "get_data", lambda *args, **kwargs: {"train": fixed})
    # One schedule for all runs, or the interrupted one would decay within its first epoch.
    flags = ("--lr-scheduler", "const", "--epochs")
    whole = train(*flags, "2", name="whole")
    part = train(*flags, "1", name="part")

    restored: dict[str, Any] = {}
    train_one_epoch = command.train_one_epoch

    def keep_state(model: Any, data: Any, loss: Any, epoch: int, optimizer: Any, *rest: Any,
                   **options: Any) -> Any:  # fmt: skip
        restored["state_dict"] = {k: v.clone() for k, v in model.state_dict().items()}
        restored["optimizer"] = optimizer.state_dict()["state"]
        restored["moments"] = [v["exp_avg"].clone() for v in restored["optimizer"].values()]
        return train_one_epoch(model, data, loss, epoch, optimizer, *rest, **options)

    monkeypatch.setattr(command, "train_one_epoch", keep_state)
    saved = part.checkpoints / "epoch_1.pt"
    resumed = train(*flags, "2", "--resume", str(saved), name="resumed")

    checkpoint = torch.load(saved)
    for key, value in checkpoint["state_dict"].items():
        assert torch.equal(value, restored["state_dict"][key]), key
    moments = [v["exp_avg"] for v in checkpoint["optimizer"]["state"].values()]
    assert all(torch.equal(a, b) for a, b in zip(moments, restored["moments"], strict=True))
    assert resumed.losses == whole.losses[3:]
    ends = [torch.load(r.checkpoints / "epoch_2.pt")["state_dict"] for r in (whole, resumed)]
    for key, value in ends[0].items():
        assert torch.equal(value, ends[1][key]), key


def test_torchscript_is_refused(train: Train, recorded: Recorded) -> None:
    """Old releases stop with our sentence; newer ones log it and train on unscripted."""
    try:
        result = train("--torchscript")
    except Exception as error:
        assert "train without --torchscript" in str(error)
        return
    assert "train without --torchscript" in (result.folder / "out.log").read_text()
    assert main_calls(recorded["train"], lookahead=True) == [PLANNED] * STEPS


def test_torchcompile_makes_one_graph(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's own torch.compile, with a backend that records what attention works on."""
    graphs: list[list[int]] = []

    def backend(graph: Any, inputs: Any) -> Any:
        attention = torch.nn.functional.multi_head_attention_forward
        calls = [node for node in graph.graph.nodes if node.target is attention]
        shapes = [node.args[0].meta["example_value"].shape for node in calls]
        graphs.append([shape[0] for shape in shapes])  # sequence first inside the function
        return graph.forward

    compile_model = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda model: compile_model(model, backend=backend, fullgraph=True)
    )
    torch._dynamo.reset()
    result = train("--torchcompile", model="elip-ViT-tiny-6")
    assert_falls(result.losses)
    assert len(graphs) == 1
    # Blocks 0 to 5, with two lookahead calls before block 2 (its third gives only a row).
    assert [length for length in graphs[0] if length != 24] == [65, 59, 59, 59, 43, 43, 43, 27]


def command_line(emoji: Any, folder: Path, *flags: str, model: str = "elip-ViT-tiny") -> str:
    out = subprocess.run(
        [
            sys.executable, "-m", "open_clip_train.main",
            *data_flags(emoji), *run_flags("run", folder, model), *flags,
        ],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr[-3000:]
    return (folder / "run" / "out.log").read_text()


def test_the_command_itself(emoji: Any, tmp_path: Path) -> None:
    log = command_line(emoji, tmp_path)
    assert "65 tokens -> 59 at block 2 -> 43 at block 4 -> 27 at block 10" in log
    assert_falls(losses(tmp_path / "run" / "out.log"))


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_the_command_itself_compiled(emoji: Any, tmp_path: Path) -> None:
    command_line(emoji, tmp_path, "--torchcompile", model="elip-ViT-tiny-6")
    assert_falls(losses(tmp_path / "run" / "out.log"))
