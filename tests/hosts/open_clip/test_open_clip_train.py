"""OpenCLIP's own training command, unmodified, with each of the flags that could interfere.

Most runs call the command's `main` in this process, so that the sequence length inside each
block can be recorded; one runs the command itself.
"""

from __future__ import annotations

import json
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
from conftest import TINY
from recorders import is_scoring

pytest.importorskip("open_clip_train.main")
pytestmark = pytest.mark.slow

TASKS = hasattr(pytest.importorskip("open_clip"), "create_task")
"""Whether this is OpenCLIP 4, whose command trains a task that holds the model."""

BATCH, STEPS, HELD_OUT = 32, 12, 48
FULL = [65] * 12
PLANNED = [65] * 2 + [59] * 2 + [43] * 6 + [27] * 2


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Some real pairs, rendered small; a shard of one batch, and one of what is held out.

    The command shuffles by the time of day. An epoch of one batch has no order, so the losses of
    two runs are equal, and the batch is learned in a few steps.
    """
    pytest.importorskip("resvg_py")
    from examples.openmoji import emojis
    from examples.openmoji import writing as openmoji

    folder = tmp_path_factory.mktemp("emoji")
    found, _ = emojis.find_emojis()
    few = found[:: len(found) // (BATCH + HELD_OUT)][: BATCH + HELD_OUT]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openmoji, "find_emojis", lambda: (few, 0))
        written = openmoji.write_openmoji(folder / "set", size=64, held_out=HELD_OUT)
    (batch,), (held_out,) = (
        list((written.out / part).glob("*.tar")) for part in ("train", "held_out")
    )
    return SimpleNamespace(batch=str(batch), held_out=str(held_out))


def data_flags(emoji: Any) -> list[str]:
    return [
        "--dataset-type", "webdataset", "--train-data", emoji.batch,
        "--train-num-samples", str(BATCH * STEPS), "--workers", "1",
    ]  # fmt: skip


def run_flags(name: str, logs: Path, model: str = "elip-ViT-tiny") -> list[str]:
    return [
        "--model", model, "--batch-size", str(BATCH), "--epochs", "1", "--lr", "3e-3",
        "--warmup", "4", "--precision", "fp32", "--log-every-n-steps", "1",
        "--logs", str(logs), "--name", name,
    ]  # fmt: skip


def losses(log: Path) -> list[float]:
    return [float(x) for x in re.findall(r" Loss: ([\d.]+) \(", log.read_text())]


def assert_falls(values: list[float]) -> None:
    assert len(values) >= 6
    assert sum(values[-3:]) < 0.97 * sum(values[:3]), values


@pytest.fixture
def recorded() -> Iterator[dict[str, list[int]]]:
    """Lengths inside every block of every pruned tower: main blocks, and those looked through."""
    from open_clip.transformer import ResidualAttentionBlock

    from elip_plugin.patching.runner import PrunedTower

    seen: dict[str, list[int]] = {"train": [], "eval": [], "ahead": []}
    pruned: set[int] = set()

    def record(module: Any, args: Any, kwargs: Any = None) -> None:
        if isinstance(module, PrunedTower):
            pruned.update(id(block) for block in module.transformer.resblocks)
        elif isinstance(module, ResidualAttentionBlock) and id(module) in pruned:
            kind = "ahead" if is_scoring() else "train" if module.training else "eval"
            seen[kind].append(args[0].shape[1])

    hook = torch.nn.modules.module.register_module_forward_pre_hook(record)
    yield seen
    hook.remove()


def forwards(lengths: list[int]) -> list[list[int]]:
    """Split recorded lengths into forwards of 12 blocks each."""
    assert len(lengths) % 12 == 0
    return [lengths[start : start + 12] for start in range(0, len(lengths), 12)]


AHEAD = [65] * 2 + [59] * 6 + [43] * 2
"""What the paper's plan looks through in one forward."""


def assert_pruned(recorded: dict[str, list[int]], count: int) -> None:
    """So many training forwards by the paper's plan, each with its lookahead."""
    assert forwards(recorded["train"]) == [PLANNED] * count
    assert recorded["ahead"] == AHEAD * count


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
    ("flags", "count"),
    [
        # Flags that touch different parts of the command go together: each run takes a while.
        (("--accum-freq", "2", "--local-loss", "--gather-with-grad"), 2 * STEPS),
        (("--siglip", "--precision", "amp_bf16"), STEPS),
        (("--precision", "pure_bf16"), STEPS),
        (("--lock-image",), STEPS),
        (("--lock-image", "--lock-image-unlocked-groups", "6"), STEPS),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, tuple) else "",
)
def test_prunes_as_planned_and_learns(
    train: Train, recorded: Recorded, flags: tuple[str, ...], count: int
) -> None:
    result = train(*flags)
    assert_pruned(recorded, count)
    if "pure_bf16" not in flags:  # it rounds updates away in so few steps
        assert_falls(result.losses)


def test_grad_checkpointing(train: Train, recorded: Recorded) -> None:
    result = train("--grad-checkpointing")
    # Backward runs the 12 main blocks again, last first, and no lookahead.
    assert forwards(recorded["train"]) == [PLANNED, PLANNED[::-1]] * STEPS
    assert recorded["ahead"] == AHEAD * STEPS
    assert_falls(result.losses)


def test_patch_dropout_and_evaluation_with_all_tokens(
    train: Train, recorded: Recorded, emoji: Any
) -> None:
    validation = ("--val-data", emoji.held_out, "--val-num-samples", str(HELD_OUT))
    train("--force-patch-dropout", "0.5", *validation)
    planned = [33] * 2 + [28 + 2] * 2 + [20 + 2] * 6 + [12 + 2] * 2
    assert forwards(recorded["train"]) == [planned] * STEPS
    assert forwards(recorded["eval"]) == [FULL] * 2  # of 32 and 16 pairs


def test_pretrained_and_distilled_from_a_file_of_the_base(
    train: Train, recorded: Recorded, tmp_path: Path
) -> None:
    import open_clip

    torch.manual_seed(5)
    teacher = tmp_path / "teacher.pt"
    torch.save(open_clip.create_model("ViT-tiny").state_dict(), teacher)
    result = train("--pretrained", str(teacher), name="pretrained")
    assert_pruned(recorded, STEPS)
    assert_falls(result.losses)

    train("--distill-model", "ViT-tiny", "--distill-pretrained", str(teacher), name="by-base")
    assert_pruned(recorded, STEPS)
    assert recorded["eval"] == []
    train("--distill-model", "elip-ViT-tiny", "--distill-pretrained", str(teacher), name="pruned")
    assert forwards(recorded["eval"]) == [FULL] * STEPS


def test_a_run_of_the_base_resumes_as_pruned_and_back(train: Train) -> None:
    first = train(name="base", model="ViT-tiny")
    again = train("--resume", str(first.checkpoints / "epoch_1.pt"), "--epochs", "2", name="pruned")
    assert_falls(first.losses[:3] + again.losses[-3:])
    train(
        "--resume", str(again.checkpoints / "epoch_2.pt"), "--epochs", "3",
        name="back", model="ViT-tiny",
    )  # fmt: skip


class Stopped(Exception):
    """As if somebody had killed the command."""


BATCHES = 4


@pytest.fixture
def fixed_data(monkeypatch: pytest.MonkeyPatch, emoji: Any) -> None:
    """Four batches per epoch that do not depend on the run."""
    import open_clip_train.main as command

    generator = torch.Generator().manual_seed(3)
    batches = [
        (
            torch.randn(16, 3, 64, 64, generator=generator),
            torch.randint(1, 49000, (16, 24), generator=generator),
        )
        for _ in range(BATCHES)
    ]
    if TASKS:
        batches = [dict(zip(("image", "text"), batch)) for batch in batches]

    class Loader(list[Any]):
        num_batches, num_samples = BATCHES, 16 * BATCHES

    fixed = SimpleNamespace(dataloader=Loader(batches), set_epoch=lambda epoch: None)
    monkeypatch.setattr(command, "get_data", lambda *args, **kwargs: {"train": fixed})


@pytest.fixture
def scheduled(monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a model whose config has a schedule, and says nothing of steps."""
    import open_clip

    section = {"preset": "fast", "warmup": 0.5, "final_unpruned": 0.25}
    configs = open_clip.factory._MODEL_CONFIGS
    monkeypatch.setitem(configs, "ViT-tiny-scheduled", {**TINY, "elip": section})
    return "ViT-tiny-scheduled"


# Of 8 steps: shares 0, 1/8 ... 7/8, a quarter of the pruning more at each eighth.
QUARTERS = [
    FULL,
    [65] * 2 + [62 + 2] * 2 + [58 + 2] * 6 + [54 + 2] * 2,
    [65] * 2 + [60 + 2] * 2 + [52 + 2] * 6 + [44 + 2] * 2,
    [65] * 2 + [59 + 2] * 2 + [47 + 2] * 6 + [35 + 2] * 2,
]
SCHEDULED = [*QUARTERS, PLANNED, PLANNED, FULL, FULL]


@pytest.mark.filterwarnings("error:this ELIP config has a schedule")
def test_a_schedule_follows_the_command_and_resumes_equal_to_an_uninterrupted_run(
    train: Train,
    recorded: Recorded,
    fixed_data: None,
    scheduled: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two epochs of four steps; the second again from the checkpoint, bit for bit."""
    import open_clip_train.main as command

    whole = train("--epochs", "2", name="whole", model=scheduled)
    assert forwards(recorded["train"]) == SCHEDULED
    restored: dict[str, Any] = {}
    stop_at = 1
    train_one_epoch = command.train_one_epoch

    def keep_state(*args: Any, **options: Any) -> Any:
        if TASKS:
            state = args[0]
            model, epoch, optimizer = state.task.trainable_module, state.epoch, state.optimizer
        else:
            model, epoch, optimizer = args[0], args[3], args[4]
        if epoch == stop_at:
            raise Stopped
        restored["state_dict"] = {k: v.clone() for k, v in model.state_dict().items()}
        restored["optimizer"] = optimizer.state_dict()["state"]
        restored["moments"] = [v["exp_avg"].clone() for v in restored["optimizer"].values()]
        return train_one_epoch(*args, **options)

    monkeypatch.setattr(command, "train_one_epoch", keep_state)
    with pytest.raises(Stopped):
        train("--epochs", "2", name="part", model=scheduled)
    saved = whole.folder.parent / "part" / "checkpoints" / "epoch_1.pt"
    assert forwards(recorded["train"]) == SCHEDULED[:4]
    stop_at = -1
    resumed = train("--epochs", "2", "--resume", str(saved), name="resumed", model=scheduled)
    assert forwards(recorded["train"]) == SCHEDULED[4:]

    checkpoint = torch.load(saved)
    for key, value in checkpoint["state_dict"].items():
        assert torch.equal(value, restored["state_dict"][key]), key
    moments = [v["exp_avg"] for v in checkpoint["optimizer"]["state"].values()]
    assert all(torch.equal(a, b) for a, b in zip(moments, restored["moments"], strict=True))
    assert resumed.losses == whole.losses[BATCHES:]
    ends = [torch.load(r.checkpoints / "epoch_2.pt")["state_dict"] for r in (whole, resumed)]
    for key, value in ends[0].items():
        assert torch.equal(value, ends[1][key]), key


@pytest.mark.filterwarnings("error:this ELIP config has a schedule")
@pytest.mark.parametrize(
    "flags",
    [("--lr-scheduler", "const"), ("--lr-scheduler", "const-cooldown", "--epochs-cooldown", "1")],
    ids=lambda flags: flags[1],
)
def test_a_schedule_counts_accumulated_steps_once(
    train: Train, recorded: Recorded, fixed_data: None, scheduled: str, flags: tuple[str, ...]
) -> None:
    """Two forwards for each of a step's two batches; four epochs of two steps."""
    train("--epochs", "4", "--accum-freq", "2", *flags, model=scheduled)
    assert forwards(recorded["train"]) == [step for step in SCHEDULED for _ in range(4)]


@pytest.mark.skipif(TASKS, reason="OpenCLIP 4 has no --torchscript")
def test_torchscript_is_refused(train: Train, recorded: Recorded) -> None:
    """Old releases stop with our sentence; newer ones log it and train on unscripted."""
    try:
        result = train("--torchscript")
    except Exception as error:
        assert "train without --torchscript" in str(error)
        return
    assert "train without --torchscript" in (result.folder / "out.log").read_text()
    assert_pruned(recorded, STEPS)


def test_torchcompile_makes_one_graph(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's own torch.compile, with a backend that records what attention works on."""
    graphs: list[list[int]] = []
    functions = torch.nn.functional
    attention, dimension = functions.multi_head_attention_forward, 0  # sequence first inside
    if TASKS:
        attention, dimension = functions.scaled_dot_product_attention, 2  # heads, then tokens

    def backend(graph: Any, inputs: Any) -> Any:
        calls = [node for node in graph.graph.nodes if node.target is attention]
        shapes = [node.args[0].meta["example_value"].shape for node in calls]
        graphs.append([shape[dimension] for shape in shapes])
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


def command_line(emoji: Any, folder: Path, *flags: str, **env: str) -> tuple[str, list[float]]:
    out = subprocess.run(
        [
            sys.executable, "-m", "open_clip_train.main",
            *data_flags(emoji), *run_flags("run", folder), *flags,
        ],
        env={**os.environ, **env},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr[-3000:]
    log = folder / "run" / "out.log"
    return log.read_text(), losses(log)


def test_the_command_itself(emoji: Any, tmp_path: Path) -> None:
    log, values = command_line(emoji, tmp_path)
    assert "65 tokens -> 59 at block 2 -> 43 at block 4 -> 27 at block 10" in log
    assert_falls(values)


@pytest.mark.newest
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_the_command_itself_compiled(emoji: Any, tmp_path: Path) -> None:
    """Two blocks, or the compiler takes minutes: one is looked through, one gives the scores."""
    section = {"stages": [{"block": 0, "lookahead": 2, "keep": 0.5}]}
    config = {**TINY, "vision_cfg": {**TINY["vision_cfg"], "layers": 2}, "elip": section}
    (tmp_path / "two.json").write_text(json.dumps(config))
    log, values = command_line(
        emoji, tmp_path, "--torchcompile", "--model", "two", ELIP_MODEL_CONFIGS=str(tmp_path)
    )
    assert "65 tokens -> 34 at block 0" in log
    assert_falls(values)
