"""OpenCLIP 4: a training task holds the model, and its command shards it with FSDP2.

Every loss is compared with that of a loop written out here.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import MODELS, TINY
from recorders import recorded_lengths
from torch import Tensor

import elip_plugin
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.hosts.open_clip.support import why_not

open_clip = pytest.importorskip("open_clip")
if not hasattr(open_clip, "create_task"):
    pytest.skip("this open_clip has no training tasks", allow_module_level=True)

FULL, PLANNED = [65] * 12, [65] * 2 + [59] * 2 + [43] * 6 + [27] * 2
Batch = dict[str, Tensor]


@pytest.fixture
def batch(pairs: tuple[Tensor, Tensor]) -> Batch:
    return dict(zip(("image", "text"), pairs))


def contrastive(out: dict[str, Tensor]) -> Tensor:
    logits = out["logit_scale"] * out["image_features"] @ out["text_features"].T
    pair = torch.arange(len(logits))
    return (F.cross_entropy(logits, pair) + F.cross_entropy(logits.T, pair)) / 2


def siglip(out: dict[str, Tensor]) -> Tensor:
    logits = out["logit_scale"] * out["image_features"] @ out["text_features"].T
    signs = 2 * torch.eye(len(logits)) - 1
    return -F.logsigmoid(signs * (logits + out["logit_bias"])).sum() / len(logits)


def lengths_of(model: Any, call: Callable[[], Any]) -> list[int]:
    with recorded_lengths(model.visual.transformer.resblocks) as lengths:
        call()
    return lengths


def test_a_task_trains_as_planned_with_the_losses_of_the_model(batch: Batch) -> None:
    model = open_clip.create_model("elip-ViT-tiny", output_dict=True)
    task = open_clip.CLIPTask(model).train()
    seen: list[Any] = []
    assert lengths_of(model, lambda: seen.append(task(batch))) == PLANNED
    losses, _ = seen[0]
    losses["loss"].backward()
    torch.testing.assert_close(losses["loss"], contrastive(model(**batch)))
    blocks = model.visual.transformer.resblocks
    assert all(p.grad.any() for n, p in blocks.named_parameters() if n.endswith("weight"))
    handle = elip_plugin.find_handle(task)
    with handle.disabled():
        assert lengths_of(model, lambda: task(batch)) == FULL
    assert lengths_of(model, lambda: task.eval()(batch)) == FULL
    handle.remove()
    assert type(model) is open_clip.CLIP


def test_siglip_distillation_and_captioning_tasks(batch: Batch) -> None:
    options = {"output_dict": True, "init_logit_bias": -10}
    model = open_clip.create_model("elip-fast-ViT-tiny", **options)
    losses, _ = open_clip.SigLIPTask(model).train()(batch)
    torch.testing.assert_close(losses["loss"], siglip(model(**batch)))

    model, teacher = (
        open_clip.create_model(f"elip-{name}", output_dict=True)
        for name in ("fast-ViT-tiny", "ViT-tiny")
    )
    task = open_clip.DistillCLIPTask(model, teacher).train()
    assert lengths_of(teacher, lambda: task(batch)) == FULL
    losses, _ = task(batch)
    torch.testing.assert_close(losses["contrastive_loss"], contrastive(model(**batch)))

    vision = {**TINY["vision_cfg"], "attentional_pool": True, "attn_pooler_heads": 4}
    text = {**TINY["text_cfg"], "embed_cls": True, "output_tokens": True}
    decoder = {**TINY["text_cfg"], "attn_pooler_heads": 4}
    config = {"embed_dim": 32, "vision_cfg": {**vision, "output_tokens": True}, "text_cfg": text}
    model = open_clip.factory.CoCa(**config, multimodal_cfg=decoder, elip="fast")
    task = open_clip.CoCaTask(model, clip_loss_weight=1.0, caption_loss_weight=2.0).train()
    assert lengths_of(model, lambda: task(batch)) == PLANNED
    losses, _ = task(batch)
    out = model(**batch)
    logits, labels = out["logits"][:, :-1].flatten(0, 1), batch["text"][:, 1:].flatten()
    caption = F.cross_entropy(logits, labels, ignore_index=0)
    torch.testing.assert_close(losses["loss"], contrastive(out) + 2 * caption)


def test_the_averaged_model_is_a_whole_copy(batch: Batch) -> None:
    model = open_clip.create_model("elip-ViT-tiny", output_dict=True)
    task = open_clip.CLIPTask(model).setup_ema(decay=0.5).train()
    averaged = task.trainable_module_ema.module
    assert lengths_of(averaged, lambda: task.eval()(batch)) == FULL
    with torch.no_grad():
        model.visual.proj.add_(1)
    task.update_ema()
    torch.testing.assert_close(averaged.visual.proj, model.visual.proj - 0.5)
    saved = task.state_dict()
    assert list(saved["state_dict_ema"]) == list(open_clip.create_model("ViT-tiny").state_dict())
    elip_plugin.find_handle(averaged).remove()
    assert lengths_of(model, lambda: task.train()(batch)) == PLANNED


def test_a_compiled_task_gives_the_same_loss(batch: Batch) -> None:
    model = open_clip.create_model("elip-ViT-tiny-6", output_dict=True)
    task = open_clip.CLIPTask(model, cache_labels=False).train()
    expected = task(batch)[0]["loss"]
    torch._dynamo.reset()
    task.compile(target="task", backend="eager", fullgraph=True)
    torch.testing.assert_close(task(batch)[0]["loss"], expected)


def test_a_task_itself_is_refused() -> None:
    task = open_clip.CLIPTask(open_clip.create_model("ViT-tiny"))
    with pytest.raises(UnsupportedModelError, match=r"CLIPTask.*apply\(task\.trainable_module\)"):
        elip_plugin.apply(task)


def test_models_of_sound_and_of_one_sequence_are_not_offered(
    recwarn: pytest.WarningsRecorder,
) -> None:
    names = elip_plugin.list_models("open_clip")
    others = [n for n in open_clip.list_models() if "clap" in n.lower() or "gen" in n.lower()]
    assert len(others) > 10 and not [n for n in others if n.startswith("elip-")]
    assert not [n for n in names if n.removeprefix("elip-") in others]
    assert not [w for w in recwarn if "elip" in str(w.message)]
    for name, why in (
        ("CLAP-HTSAT-tiny", "is missing: the model reads sound"),
        ("naflexgenlap_test_1d", "is missing: the model reads sound"),
        ("naflexgenlip_test", "patches and words in one sequence"),
    ):
        with pytest.raises(UnsupportedModelError, match=f"{name} cannot be pruned.*{why}"):
            open_clip.create_model(f"elip-{name}")


def test_every_model_with_a_plain_transformer_is_offered() -> None:
    """Those that are not have a reason, of which none is that the kind of tower is unknown."""
    names = [name for name in open_clip.list_models() if not name.startswith("elip-")]
    configs = {name: open_clip.get_model_config(name) for name in names}
    reasons = [why for config in configs.values() if (why := why_not(config))]
    known = ("reads sound", "text decoder itself", "convolutional or mixed", "ResNet", "windows")
    known += ("gives each image its own number of patches", "relative positions")
    assert not [why for why in reasons if not any(part in why for part in known)]


# The command, on one process and on two.

EPOCHS, BATCHES, BATCH, RATE = 2, 4, 8, 1e-3
SECTION = {"preset": "fast", "warmup": 0.5, "final_unpruned": 0.25}

WORKER = """
import json, os, sys, torch
from types import SimpleNamespace
import open_clip_train.main as command
from elip_plugin import find_handle
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.hosts.open_clip.support import why_not

rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))

class Loader(list):
    num_batches = property(len)
    num_samples = property(lambda self: sum(len(batch["text"]) for batch in self) * world)

def load(path, rank, world):
    parts = ({k: v.chunk(world)[rank] for k, v in batch.items()} for batch in torch.load(path))
    return SimpleNamespace(dataloader=Loader(parts), set_epoch=lambda epoch: None)

data = {"train": load("batches.pt", rank, world), "val": load("batches.pt", 0, 1)}
command.get_data = lambda *args, **options: data
tasks, create = [], command.create_task
command.create_task = lambda *args, **options: tasks.append(create(*args, **options)) or tasks[0]
command.main(json.load(open("flags.json")))  # torchrun would take --logs as its own
if world > 1:
    try:
        find_handle(tasks[0]).remove()
    except UnsupportedModelError as error:
        print("refused:", error)
    torch.distributed.destroy_process_group()
sys.stdout.flush()
os._exit(0)  # threads of a loader must not end a process that has done its work
"""


def by_hand(batches: list[Batch]) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of each step and the weights in the end, of the same training."""
    torch.manual_seed(0)
    model: Any = open_clip.create_model("ViT-tiny", output_dict=True).train()
    handle = elip_plugin.apply(model, SECTION)
    optimizer = torch.optim.AdamW(
        model.parameters(), RATE, betas=(0.9, 0.98), eps=1e-6, weight_decay=0
    )
    losses = []
    for step in range(EPOCHS * BATCHES):
        handle.update_progress(step, EPOCHS * BATCHES)
        optimizer.zero_grad()
        loss = contrastive(model(**batches[step % BATCHES]))
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        losses.append(loss.item())
    return losses, model.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "flags"),
    [
        (1, ()),
        (1, ("--grad-checkpointing", "--torchcompile", "--torchcompile-backend", "eager")),
        (2, ("--fsdp",)),
        (2, ("--fsdp", "--grad-checkpointing", "--fsdp-no-reshard-after-forward")),
        (2, ("--fsdp", "--torchcompile", "--torchcompile-backend", "eager")),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, tuple) else str(value),
)
def test_the_command_with_a_schedule_equals_a_loop_by_hand(
    processes: int, flags: tuple[str, ...], tmp_path: Path
) -> None:
    """The losses, the weights in the checkpoint, and its loading as the base model."""
    generator = torch.Generator().manual_seed(3)
    batches = [
        {
            "image": torch.randn(BATCH, 3, 64, 64, generator=generator),
            "text": torch.randint(1, 49000, (BATCH, 24), generator=generator),
        }
        for _ in range(BATCHES)
    ]
    torch.save(batches, tmp_path / "batches.pt")
    (tmp_path / "worker.py").write_text(WORKER)
    models = tmp_path / "models"
    models.mkdir()
    (models / "ViT-tiny.json").write_text((MODELS / "ViT-tiny.json").read_text())
    (models / "ViT-scheduled.json").write_text(json.dumps({**TINY, "elip": SECTION}))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    given = [
        "--model", "ViT-scheduled", "--train-data", "batches", "--device", "cpu", "--precision",
        "fp32", "--epochs", str(EPOCHS), "--batch-size", str(BATCH // processes), "--lr", str(RATE),
        "--wd", "0", "--warmup", "0", "--lr-scheduler", "const", "--log-every-n-steps", "1",
        "--logs", "logs", "--name", "run", "--local-loss", "--gather-with-grad", *flags,
    ]  # fmt: skip
    (tmp_path / "flags.json").write_text(json.dumps(given))
    command = [*(launch if processes > 1 else []), "worker.py"]
    env = {**os.environ, "ELIP_MODEL_CONFIGS": str(models), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    expected, weights = by_hand(batches)
    log = (tmp_path / "logs" / "run" / "out.log").read_text()
    losses = [float(loss) for loss in re.findall(r" Loss: ([\d.]+) \(", log)]
    assert losses == pytest.approx(expected, abs=2e-4)
    if processes > 1:
        assert "cannot remove ELIP: FSDP" in done.stdout
    base = open_clip.create_model("ViT-tiny", pretrained=None)
    open_clip.load_checkpoint(base, str(tmp_path / "logs/run/checkpoints/epoch_2.pt"))
    for name, value in base.state_dict().items():
        # Adam makes a whole step of a gradient that is all but 0, so single weights may differ.
        apart = (value - weights[name]).abs()
        assert apart.mean() < RATE / 20 and apart.max() < RATE, name
